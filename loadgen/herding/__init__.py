"""`make herding`: how evenly several routers spread a burst, with a shared ledger of loads and without."""
