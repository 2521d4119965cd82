"""Runs untrusted programs: back-ends, their self-test, and a pool of slots that serve one check at a time.

The files from the ground up: `runtime` and `bundle` (what a sandbox is made of), `backends`, `slot`,
`selftest`, `ladder` (which back-end this machine can use), `pool`; `inside` runs in the sandbox itself. Left
out: what a program and its tests are, and the verdict (`rewards.code`). Linux only. Imports `posttrain.base`
and `posttrain.errors`.
"""
