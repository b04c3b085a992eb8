"""What several routers know together, against one router, and against each knowing only its own: `make routers`."""
