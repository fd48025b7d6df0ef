""".github: nothing here runs workflows, so two linters and the published schemas read them, and the promises are asked."""

import os
import re
import sys
import tomllib
import unittest

import yaml

from places import DEPLOY, ROOT, run, schema_faults, tool

WORKFLOWS = ROOT / ".github/workflows"
IMAGES = {"webhook-gateway", "pass-state", "passline"}


def workflow(name):
    return yaml.load((WORKFLOWS / name).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def steps(document):
    for job in document["jobs"].values():
        yield from job.get("steps", [])


class Workflows(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.all = {path.name: workflow(path.name) for path in WORKFLOWS.glob("*.y*ml")}

    def test_the_files_are_what_github_reads(self):
        self.assertEqual(set(self.all), {"ci.yaml", "release.yaml"})
        for name in self.all:
            with self.subTest(workflow=name):
                document = yaml.safe_load((WORKFLOWS / name).read_text(encoding="utf-8"))
                document["on"] = document.pop(True)
                self.assertEqual(schema_faults(document, "github-workflows"), [])

    def test_dependabot_reads_its_file_and_watches_all_that_is_pinned(self):
        document = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text(encoding="utf-8"))
        self.assertEqual(schema_faults(document, "dependabot"), [])
        watched = {
            (update["package-ecosystem"], directory)
            for update in document["updates"]
            for directory in update.get("directories", [update.get("directory")])
        }
        self.assertEqual(
            watched,
            {
                ("cargo", "/"), ("github-actions", "/"), ("docker", "/deploy/docker"),
                ("docker-compose", "/deploy/compose"), ("pip", "/tests/tools"), ("pip", "/tests/deploy"),
            },
        )
        for _, directory in watched:
            self.assertTrue((ROOT / directory.lstrip("/")).is_dir(), directory)

    def test_names_types_inputs_and_scripts_are_right(self):
        # Finds shellcheck on the path, which is that of this environment.
        done = tool("jactionlint", "--strict-exit", "--no-color", timeout=180)
        self.assertEqual((done.returncode, done.stdout), (0, ""))

    def test_an_attacker_finds_nothing(self):
        done = tool("zizmor", "--offline", "--no-progress", "--color=never", ROOT / ".github", timeout=180)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_the_linters_would_find_a_fault(self):
        text = (WORKFLOWS / "ci.yaml").read_text(encoding="utf-8")
        broken = text.replace("- run: .ci/run", "- run: echo ${{ github.event.pull_request.title }} ${{ steps.none.outputs.x }}")
        self.assertNotEqual(text, broken)
        done = tool("jactionlint", "-", input=broken)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("template-injection", done.stdout)
        self.assertIn("undefined-property", done.stdout)

    def test_every_action_is_named_by_commit_with_its_version(self):
        for path in WORKFLOWS.glob("*.y*ml"):
            for line in path.read_text(encoding="utf-8").splitlines():
                if re.search(r"\buses:", line) and not line.strip().endswith("uses: $/.github/workflows/ci.yaml"):
                    self.assertRegex(line, r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", path.name)

    def test_one_version_of_an_action_is_used_everywhere(self):
        used = {}
        for document in self.all.values():
            for step in steps(document):
                if "uses" in step:
                    name, _, commit = step["uses"].partition("@")
                    used.setdefault(name, set()).add(commit)
        self.assertEqual({name: commits for name, commits in used.items() if len(commits) > 1}, {})

    def test_nothing_is_allowed_that_a_job_does_not_ask_for(self):
        for name, document in self.all.items():
            self.assertEqual(document["permissions"], {}, name)
            for job_name, job in document["jobs"].items():
                with self.subTest(workflow=name, job=job_name):
                    self.assertIn("permissions", job)
                    self.assertTrue("timeout-minutes" in job or "uses" in job)

    def test_only_a_release_may_write_and_only_from_a_tag(self):
        self.assertEqual(self.all["release.yaml"]["on"], {"push": {"tags": ["v*"]}})
        for job in self.all["ci.yaml"]["jobs"].values():
            self.assertEqual(job["permissions"], {"contents": "read"})
        rights = {
            name: {right for right, how in job["permissions"].items() if how == "write"}
            for name, job in self.all["release.yaml"]["jobs"].items()
        }
        publishing = {"attestations", "id-token", "packages"}
        self.assertEqual(
            rights,
            {
                "tests": set(), "plan": set(), "build": {"packages"}, "scan": set(),
                "images": publishing, "chart": publishing, "release": {"attestations", "id-token", "contents"},
            },
        )

    def test_no_checkout_leaves_its_token_behind(self):
        for document in self.all.values():
            for step in steps(document):
                if step.get("uses", "").startswith("actions/checkout@"):
                    self.assertEqual(step["with"]["persist-credentials"], "false")

    def test_what_may_sign_runs_no_code_of_the_repository(self):
        """A job with the signing identity packs and names what others built."""
        for name, job in self.all["release.yaml"]["jobs"].items():
            if job["permissions"].get("id-token") == "write":
                for step in job["steps"]:
                    self.assertNotRegex(step.get("run", ""), r"cargo|tests/run|\.ci/|docker (buildx )?build\b", name)

    def test_a_half_done_release_is_never_cancelled_and_uses_no_cache(self):
        text = (WORKFLOWS / "release.yaml").read_text(encoding="utf-8")
        self.assertEqual(self.all["release.yaml"]["concurrency"]["cancel-in-progress"], "false")
        self.assertNotRegex(text, r"cache-(from|to)|actions/cache|cache-binary: true")

    def test_a_release_waits_for_the_tests_the_scan_and_the_images(self):
        jobs = self.all["release.yaml"]["jobs"]

        def before(name):
            needs = jobs[name].get("needs", [])
            needs = [needs] if isinstance(needs, str) else needs
            return set(needs).union(*(before(need) for need in needs))

        self.assertEqual(before("release"), set(jobs) - {"release"})
        self.assertIn("tests", before("build"))
        self.assertIn("scan", before("images"))
        self.assertIn("images", before("chart"))

    def test_every_image_is_built_scanned_and_published_for_both_architectures(self):
        jobs = self.all["release.yaml"]["jobs"]
        (loop,) = re.findall(r"for image in (.+); do", "".join(step.get("run", "") for step in jobs["build"]["steps"]))
        self.assertEqual(set(loop.split()), IMAGES)
        arches = {row["arch"] for row in jobs["build"]["strategy"]["matrix"]["include"]}
        self.assertEqual(arches, {"amd64", "arm64"})
        self.assertEqual(set(jobs["scan"]["strategy"]["matrix"]["image"]), IMAGES)
        self.assertEqual(set(jobs["scan"]["strategy"]["matrix"]["arch"]), arches)
        self.assertEqual(set(jobs["images"]["strategy"]["matrix"]["image"]), IMAGES)

    def test_an_image_is_scanned_and_listed_as_the_architecture_that_it_is_of(self):
        """Both tools would take the runner's: Grype finds nothing of it in an arm64 index, Syft tells of it alone."""
        jobs = self.all["release.yaml"]["jobs"]
        (scan,) = [step for step in jobs["scan"]["steps"] if step.get("uses", "").startswith("anchore/scan-action@")]
        self.assertEqual(scan["env"]["GRYPE_PLATFORM"], "linux/${{ matrix.arch }}")
        listed, attested = set(), set()
        for step in jobs["images"]["steps"]:
            if step.get("uses", "").startswith("anchore/sbom-action@"):
                arch = step["env"]["SYFT_PLATFORM"].removeprefix("linux/")
                self.assertEqual(step["with"]["image"], "${{ env.IMAGE }}@${{ steps.name.outputs.%s }}" % arch)
                listed.add((arch, step["with"]["output-file"]))
            elif "sbom-path" in step.get("with", {}):
                arch = re.fullmatch(r"\$\{\{ steps\.name\.outputs\.(\w+) \}\}", step["with"]["subject-digest"]).group(1)
                attested.add((arch, step["with"]["sbom-path"]))
        self.assertEqual({arch for arch, _ in listed}, {"amd64", "arm64"})
        self.assertEqual(listed, attested)

    def test_what_is_published_is_where_the_chart_looks_for_it(self):
        """The plan's own line, for the repository passline of the owner Passline."""
        script = next(
            step["run"] for step in self.all["release.yaml"]["jobs"]["plan"]["steps"] if step.get("id") == "plan"
        )
        (line,) = [line for line in script.splitlines() if '"registry=' in line]
        names = dict(os.environ, GITHUB_REPOSITORY="Passline/passline", GITHUB_REPOSITORY_OWNER="Passline")
        registry = run(["bash", "-c", line], env=names).stdout.strip().removeprefix("registry=")
        values = yaml.safe_load((DEPLOY / "helm/passline/values.yaml").read_text(encoding="utf-8"))
        pulled = {values[part]["image"]["repository"] for part in ("gateway", "passState", "tests")}
        self.assertEqual(pulled, {f"{registry}/{image}" for image in IMAGES})
        charts = re.findall(r"oci://([^\s`]+)", (DEPLOY / "helm/passline/README.md").read_text(encoding="utf-8"))
        self.assertEqual(set(charts), {f"{registry}/charts/passline"})

    def test_the_targets_and_arguments_that_are_named_are_in_the_dockerfile(self):
        dockerfile = (DEPLOY / "docker/Dockerfile").read_text(encoding="utf-8")
        targets = set(re.findall(r"(?m)^FROM \S+ AS (\S+)$", dockerfile))
        arguments = set(re.findall(r"(?m)^ARG (\w+)", dockerfile))
        for name in self.all:
            text = (WORKFLOWS / name).read_text(encoding="utf-8")
            self.assertLessEqual(set(re.findall(r"(?:target:|--target) ([\w-]+)", text)), targets)
            self.assertLessEqual(set(re.findall(r'--build-arg "(\w+)=', text)), arguments)
        given = set(re.findall(r'--build-arg "(\w+)=', (WORKFLOWS / "release.yaml").read_text(encoding="utf-8")))
        self.assertEqual(given, arguments, "a release says everything that an image tells of itself")

    def test_the_bases_are_found_where_the_release_looks_for_them(self):
        """The plan's own expression, over the Dockerfile as it is."""
        script = next(
            step["run"] for step in self.all["release.yaml"]["jobs"]["plan"]["steps"] if step.get("id") == "bases"
        )
        expression = re.search(r"--perl-regexp '(.+?)'", script).group(1)
        found = run(["grep", "--only-matching", "--perl-regexp", expression, DEPLOY / "docker/Dockerfile"]).stdout.split()
        named = set(re.findall(r"(?m)^FROM (\S+/\S+) AS", (DEPLOY / "docker/Dockerfile").read_text(encoding="utf-8")))
        self.assertEqual(set(found), named)
        self.assertEqual(len(named), 2)

    def test_the_version_is_found_where_the_release_looks_for_it(self):
        manifest = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
        version = tomllib.loads(manifest)["workspace"]["package"]["version"]
        self.assertEqual(manifest.splitlines().count(f'version = "{version}"'), 1)

    def test_every_commandline_of_ours_is_there(self):
        text = "\n".join(step.get("run", "") for document in self.all.values() for step in steps(document))
        for script in (".ci/run", "tests/run", "deploy/compose/make-secrets"):
            self.assertIn(script, text)
            self.assertTrue((ROOT / script).is_file())
        self.assertIn("advisories)", (ROOT / "tests/run").read_text(encoding="utf-8"))
        self.assertTrue((DEPLOY / "helm/passline/Chart.yaml").is_file())


class Runner(unittest.TestCase):
    """tests/deploy/__main__.py, as `tests/run deploy` calls it."""

    def called(self, *arguments):
        return run([sys.executable, ".", *arguments], cwd=ROOT / "tests/deploy")

    def test_flags_alone_choose_among_all_tests(self):
        done = self.called("-v", "-k", "test_charts_are_rendered_by_helm_4")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("Ran 1 test", done.stdout)

    def test_a_run_of_no_test_fails(self):
        self.assertNotEqual(self.called("-k", "no_test_is_called_so").returncode, 0)
        self.assertNotEqual(self.called("toolchain_test", "-k", "no_test_is_called_so").returncode, 0)


if __name__ == "__main__":
    unittest.main()
