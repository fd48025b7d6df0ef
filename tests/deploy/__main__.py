"""Runs the tests of this directory by Python's unittest, all of them where no file is named; no test at all is a failure."""

import sys
import unittest

arguments = sys.argv[1:]
if not arguments or arguments[0].startswith("-"):
    arguments = ["discover", "--pattern", "*_test.py", *arguments]
result = unittest.main(module=None, argv=["tests/run deploy", *arguments], exit=False).result
if result.testsRun == 0:
    sys.exit("tests/run deploy: no test ran")
sys.exit(not result.wasSuccessful())
