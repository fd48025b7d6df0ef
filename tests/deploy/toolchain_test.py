"""The tools that the other tests stand on are the ones they mean."""

import unittest

import helm_python
from kubernetes_validate import utils


class Toolchain(unittest.TestCase):
    def test_charts_are_rendered_by_helm_4(self):
        self.assertRegex(helm_python.helm_sdk_version(), r"^v4\.")

    def test_the_schemas_of_the_oldest_and_newest_minor_are_there(self):
        carried = {utils.major_minor(version) for version in utils.all_versions()}
        self.assertLessEqual({"1.30", "1.37"}, carried)


if __name__ == "__main__":
    unittest.main()
