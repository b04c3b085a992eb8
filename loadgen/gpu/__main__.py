"""`python -m loadgen.gpu`."""

from loadgen.gpu.bench import main

main()
