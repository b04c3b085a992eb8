"""`python -m loadgen.micro`."""

from loadgen.micro.bench import main

main()
