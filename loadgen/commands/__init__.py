"""The subcommands of `radixgate bench`: each owns its command line, and calls on the rooms beside this one."""
