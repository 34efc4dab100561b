"""A fuzzer: damaged and hostile input through the real command, which must end with exit code 0 or 2.

python -m benchmarks.fuzz --seconds 7200 --seed 1
"""
