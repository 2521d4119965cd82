"""Runs programs that nobody trusts: back-ends, slots, self-test. See `backends` for the ladder and its reasons.

Left out: what a verdict is (rewards/code). Linux only.
"""
