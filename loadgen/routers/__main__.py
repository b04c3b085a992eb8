"""`python -m loadgen.routers`."""

from loadgen.routers.command import main

main()
