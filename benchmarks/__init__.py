"""Speed claims: each module is a command, `python -m benchmarks.NAME`, that prints a table and writes JSON.

demo                   what `make demo` runs
models                 the suite's models beside other runtimes, untuned and tuned
suite, networks        the models
output                 the JSON, the table and the environment that every benchmark reports
"""
