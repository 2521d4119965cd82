"""What runs inside the sandbox: standard library only, shipped as source to the confined interpreter (see `bundle`).

Nothing here may import the rest of the package. The candidate's process holds `host`, never a test or an expected
value; the judge's process holds the tests and sees only plain data of the candidate.
"""
