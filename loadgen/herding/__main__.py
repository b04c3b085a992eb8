"""`python -m loadgen.herding`."""

from loadgen.herding.bench import main

main()
