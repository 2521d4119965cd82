"""What runs inside the sandbox, shipped as source to the confined interpreter (see `bundle`).

Only the standard library and this package may be imported here. Three processes: the `zygote` forks a
candidate and a tester for each check. The candidate (`host`, or `script` for tests by standard input) runs
the program and never contains a test or an expected value. The `tester` contains the tests and receives only
plain data from the candidate.
"""
