"""What a run of the load generator showed: figures, one JSON document, a table and a page with plots."""
