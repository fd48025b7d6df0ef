"""deploy/docker/Dockerfile: no image is built here, so it is linted, parsed, and held against the repository."""

import io
import os
import pathlib
import re
import shutil
import tempfile
import tomllib
import unittest

import dockerfile_parse

from places import DEPLOY, ROOT, cargo_metadata, run, tool

DOCKERFILE = DEPLOY / "docker/Dockerfile"
# Each image, and the ports that its service may be configured to listen on.
IMAGES = {"webhook-gateway": {"8080", "8081"}, "pass-state": {"50051", "50052", "8082"}, "passline": set()}
SERVICES = ("webhook-gateway", "pass-state")
USER = "65532:65532"


class Stage:
    """One stage: its own instructions, and where they start from."""

    def __init__(self, value):
        words = value.split()
        assert len(words) == 3 and words[1].upper() == "AS", f"a FROM without a name: {value}"
        self.base, _, self.name = words
        self.instructions = []

    def all(self, instruction):
        return [value for name, value in self.instructions if name == instruction]

    def last(self, instruction):
        found = self.all(instruction)
        return found[-1] if found else None


def stages():
    """The stages by name, in order."""
    parser = dockerfile_parse.DockerfileParser(fileobj=io.BytesIO(DOCKERFILE.read_bytes()))
    found = {}
    for entry in parser.structure:
        name, value = entry["instruction"], entry["value"]
        if name == "COMMENT":
            continue
        if name == "FROM":
            stage = Stage(value)
            found[stage.name] = stage
        else:
            stage.instructions.append((name, value))
    return found


def copy_arguments(value):
    """Flags, sources and destination of a COPY."""
    words = value.split()
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    *sources, destination = [word for word in words if not word.startswith("--")]
    return flags, sources, destination


# --- .dockerignore ----------------------------------------------------------
def ignore_rules():
    """Pairs of a pattern and whether it lets in, in order; the last that matches decides."""
    rules = []
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            lets_in = line.startswith("!")
            rules.append((line.removeprefix("!"), lets_in))
    return rules


def matches(pattern, path):
    """Docker's matching of a pattern or one of its forms, for those that the file uses: plain, `DIR/**`, `**/NAME`, `**`.

    As in Docker a pattern that matches a directory holds for all in it.
    """
    if pattern == "**":
        return True
    if pattern.startswith("**/"):
        name = pattern.removeprefix("**/")
        assert not re.search(r"[*?\[/]", name), f"a form that this test doesn't know: {pattern}"
        return name in path.split("/")
    plain = pattern.removesuffix("/**")
    assert not re.search(r"[*?\[]", plain), f"a form that this test doesn't know: {pattern}"
    return path == plain or path.startswith(f"{plain}/")


def context_files():
    """What the builder would be sent, of all files that git knows or would add."""
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"])
    rules = ignore_rules()
    for path in filter(None, listed.stdout.split("\0")):
        inside = True
        for pattern, lets_in in rules:
            if matches(pattern, path):
                inside = lets_in
        if inside and (ROOT / path).is_file():
            yield path


class Dockerfile(unittest.TestCase):
    def setUp(self):
        self.stages = stages()

    def chain(self, name):
        """A stage and all that it is made from in this file, the nearest first."""
        while name in self.stages:
            yield self.stages[name]
            name = self.stages[name].base

    def test_the_linter_finds_nothing(self):
        # Without a configuration of its own, so nothing is switched off in silence.
        done = tool("hadolint", "--no-color", "--failure-threshold", "style", DOCKERFILE)
        self.assertEqual((done.returncode, done.stdout), (0, ""))

    def test_no_comment_switches_the_linter_off(self):
        self.assertNotIn("hadolint ignore", DOCKERFILE.read_text(encoding="utf-8"))

    def test_every_base_from_outside_is_named_with_registry_and_tag(self):
        for stage in self.stages.values():
            if stage.base in self.stages or stage.base == "scratch":
                continue
            with self.subTest(base=stage.base):
                self.assertRegex(stage.base, r"^[a-z0-9.-]+\.[a-z]+/[a-z0-9/._-]+:[A-Za-z0-9._-]+$")
                self.assertNotRegex(stage.base, r":(latest|debug|slim|stable|bookworm)\b")

    def test_the_compiler_is_pinned_and_new_enough(self):
        tag = self.stages["toolchain"].base.rpartition(":")[2]
        version = re.match(r"(\d+)\.(\d+)\.\d+-slim-bookworm$", tag)
        self.assertIsNotNone(version, tag)
        manifest = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))
        least = tuple(map(int, manifest["workspace"]["package"]["rust-version"].split(".")[:2]))
        self.assertGreaterEqual(tuple(map(int, version.groups())), least)

    def test_there_is_a_target_for_every_program_that_is_shipped(self):
        built = {
            target["name"]: package["name"]
            for package in cargo_metadata()["packages"]
            for target in package["targets"]
            if "bin" in target["kind"] and package["name"] != "system-tests"
        }
        self.assertEqual(set(built), set(IMAGES))
        self.assertEqual(set(built.values()), set(IMAGES), "the Dockerfile builds packages by the programs' names")
        self.assertLessEqual(set(IMAGES), set(self.stages))

    def test_every_program_is_built_with_the_profile_of_releases_and_its_lock_file(self):
        manifest = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))
        self.assertIn("dist", manifest["profile"])
        commands = [
            command
            for value in self.stages["build"].all("RUN")
            for command in re.split(r"&&|;", value)
            if re.search(r"\bcargo\b", command)
        ]
        self.assertEqual(len(commands), 2, "one for the dependencies, one for the programs")
        for command in commands:
            words = command.split()
            self.assertIn("--locked", words)
            self.assertEqual(words[words.index("--profile") + 1], "dist")
            packages = {words[at + 1] for at, word in enumerate(words) if word == "--package"}
            self.assertEqual(packages, set(IMAGES), "both must choose the same, or dependencies are built twice")
            self.assertNotIn("--features", words)
            self.assertNotIn("--all-features", words, "planted bugs are features")

    def test_dependencies_are_built_before_the_sources_come(self):
        order = [(name, value) for name, value in self.stages["build"].instructions if name in ("COPY", "RUN")]
        cook = next(at for at, (_, value) in enumerate(order) if "cargo chef cook" in value)
        sources = next(at for at, (name, value) in enumerate(order) if name == "COPY" and value.split() == [".", "."])
        self.assertLess(cook, sources)
        self.assertNotIn("SOURCE_DATE_EPOCH", " ".join(value for _, value in order[: cook + 1]))

    def test_a_build_leaves_no_trace_of_where_and_when(self):
        environment = " ".join(self.stages["toolchain"].all("ENV"))
        self.assertIn("--remap-path-prefix=/src=", environment)
        self.assertIn("-ffile-prefix-map=/src=", environment)
        self.assertIn("CARGO_INCREMENTAL=0", environment)
        self.assertEqual(self.stages["toolchain"].last("WORKDIR"), "/src")
        self.assertTrue(any("SOURCE_DATE_EPOCH" in value for value in self.stages["build"].all("ARG")))

    def test_nothing_is_downloaded_by_hand(self):
        for stage in self.stages.values():
            self.assertEqual(stage.all("ADD"), [], "COPY says where a file comes from")
            for command in stage.all("RUN"):
                self.assertNotRegex(command, r"\b(curl|wget)\b|https?://")

    def test_an_image_ends_on_a_base_without_a_shell_and_runs_nothing_there(self):
        for name in IMAGES:
            with self.subTest(image=name):
                *_, bottom = self.chain(name)
                self.assertRegex(bottom.base, r"^gcr\.io/distroless/(cc|base|static)-debian\d+:nonroot$")
                for stage in self.chain(name):
                    self.assertEqual(stage.all("RUN"), [], "there is nothing to run it with")
                    self.assertEqual(stage.all("SHELL"), [])

    def test_the_libc_of_the_base_is_that_of_the_build(self):
        bottom = self.stages["runtime"].base
        names = {"bookworm": "12", "trixie": "13"}
        build = names[self.stages["toolchain"].base.rpartition("-")[2]]
        self.assertIn(f"-debian{build}:", bottom)

    def test_an_image_runs_as_a_user_of_no_rights_named_by_number(self):
        for name in IMAGES:
            with self.subTest(image=name):
                users = [user for stage in self.chain(name) for user in stage.all("USER")]
                self.assertEqual(set(users), {USER})

    def test_an_image_runs_its_own_program_directly(self):
        for name in IMAGES:
            with self.subTest(image=name):
                stage = self.stages[name]
                binary = f"/usr/local/bin/{name}"
                self.assertEqual(stage.all("ENTRYPOINT"), [f'["{binary}"]'])
                self.assertRegex(stage.last("CMD"), r"^\[.*\]$", "a CMD in shell form needs a shell")
                copied = {
                    destination: sources
                    for _, sources, destination in map(copy_arguments, stage.all("COPY"))
                }
                self.assertEqual(copied[binary], [f"/out/bin/{name}"])

    def test_a_service_says_how_it_is_stopped_and_asked(self):
        for name in SERVICES:
            with self.subTest(image=name):
                stage = self.stages[name]
                self.assertEqual(stage.last("STOPSIGNAL"), "SIGTERM")
                self.assertIn(f'CMD ["/usr/local/bin/{name}", "healthcheck"]', stage.last("HEALTHCHECK"))
                self.assertIn('"serve"', stage.last("CMD"))
                self.assertEqual(set(stage.last("EXPOSE").split()), IMAGES[name])

    def test_a_service_may_write_where_its_data_goes(self):
        for name in SERVICES:
            with self.subTest(image=name):
                stage = self.stages[name]
                self.assertEqual(stage.all("VOLUME"), ["/var/lib/passline"])
                self.assertIn('"--data-dir", "/var/lib/passline"', stage.last("CMD"))
                data = [
                    flags
                    for flags, _, destination in map(copy_arguments, stage.all("COPY"))
                    if destination == "/var/lib/passline"
                ]
                self.assertEqual(data, [{"from": "build", "chown": USER}])
                order = [name for name, value in stage.instructions if "/var/lib/passline" in value]
                self.assertLess(order.index("COPY"), order.index("VOLUME"), "what comes after VOLUME is lost")

    def test_an_image_says_what_it_is(self):
        for name in IMAGES:
            with self.subTest(image=name):
                labels = " ".join(value for stage in self.chain(name) for value in stage.all("LABEL"))
                for label in (
                    "title", "description", "vendor", "licenses", "version", "revision", "created", "source", "base.name",
                ):
                    self.assertEqual(len(re.findall(rf"org\.opencontainers\.image\.{re.escape(label)}=", labels)), 1, label)
                self.assertIn(f'base.name="{self.stages["runtime"].base}"', labels)
                self.assertIn(f'title="{name}"', labels)

    def test_licences_go_with_the_programs_wherever_they_go(self):
        for name in (*IMAGES, "files"):
            with self.subTest(target=name):
                copied = [copy_arguments(value) for stage in self.chain(name) for value in stage.all("COPY")]
                directory = "/" if name == "files" else "/usr/share/licenses/passline/"
                self.assertIn(({"from": "notices"}, ["/out/"], directory), copied)
        (command,) = [value for value in self.stages["notices"].all("RUN") if "cargo about" in value]
        for needed in ("--frozen", "--fail", "/out/THIRD-PARTY.txt", "LICENSE", "COPYRIGHT-library.html"):
            self.assertIn(needed, command)
        for path in ("deploy/docker/about.toml", "deploy/docker/third-party.hbs"):
            self.assertIn(path, command)
            self.assertIn(path, set(context_files()))

    def test_the_licences_listed_are_those_of_all_programs_and_on_the_terms_of_cargo_deny(self):
        (passline,) = [package for package in cargo_metadata()["packages"] if package["name"] == "passline"]
        needs = {dependency["name"] for dependency in passline["dependencies"] if dependency["kind"] is None}
        self.assertLessEqual(set(SERVICES), needs, "passline's dependencies stand for those of all programs")
        about = tomllib.loads((DEPLOY / "docker/about.toml").read_text(encoding="utf-8"))
        deny = tomllib.loads((ROOT / ".deny.toml").read_text(encoding="utf-8"))
        self.assertEqual(set(about["accepted"]), set(deny["licenses"]["allow"]))
        self.assertEqual(about["targets"], deny["graph"]["targets"])

    def test_no_secret_can_get_into_a_layer(self):
        for stage in self.stages.values():
            for value in stage.all("ARG") + stage.all("ENV"):
                self.assertNotRegex(value.upper(), r"SECRET|TOKEN|PASSWORD|CREDENTIAL")

    def test_every_copy_finds_its_source(self):
        """From another stage: a path that its commands write. From the context: a file that is sent."""
        for stage in self.stages.values():
            for value in stage.all("COPY"):
                flags, sources, _ = copy_arguments(value)
                for source in sources:
                    with self.subTest(stage=stage.name, source=source):
                        if "from" in flags:
                            self.assertIn(flags["from"], self.stages)
                            made = " ".join(self.stages[flags["from"]].all("RUN"))
                            directory, _, name = source.rstrip("/").rpartition("/")
                            self.assertTrue(source.rstrip("/") in made or (directory in made and name in made))
                        elif source != ".":
                            self.assertIn(source, set(context_files()))


class Readme(unittest.TestCase):
    def test_a_variable_that_is_named_there_is_one_that_the_service_starts_with(self):
        text = (DEPLOY / "README.md").read_text(encoding="utf-8")
        section = re.search(r"(?ms)^## Images$(.+?)^## ", text).group(1)
        named = re.findall(r"`((?:GATEWAY|PASS_STATE)__\w+)=(\S+)`", section)
        self.assertNotEqual(named, [])
        for variable, value in named:
            program = "webhook-gateway" if variable.startswith("GATEWAY__") else "pass-state"
            binary = pathlib.Path(os.environ.get("PASSLINE_BIN", ROOT / "target/debug")) / program
            done = run([binary, "check-config"], env={"PATH": os.environ["PATH"], variable: value})
            self.assertEqual(done.returncode, 0, done.stdout)


class Context(unittest.TestCase):
    def setUp(self):
        self.files = list(context_files())

    def test_only_what_cargo_and_cargo_about_read_is_sent(self):
        for path in self.files:
            with self.subTest(path=path):
                self.assertRegex(
                    path,
                    r"^(\.cargo/config\.toml|Cargo\.(toml|lock)|LICENSE|(crates|proto|services|tests)/.+"
                    r"|deploy/docker/(about\.toml|third-party\.hbs))$",
                )
                self.assertNotRegex(path, r"(^|/)(target|secrets?)/|\.(pem|key|p12)$")
        rules = ignore_rules()
        self.assertEqual(rules[0], ("**", False), "what nobody thought of stays outside")
        self.assertEqual(rules[-1], ("**/target", False))

    def test_cargo_finds_the_whole_workspace_in_what_is_sent(self):
        with tempfile.TemporaryDirectory() as directory:
            directory = pathlib.Path(directory)
            for path in self.files:
                copy = directory / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, copy)

            def shown(metadata, root):
                return {
                    (package["name"], target["name"], target["src_path"].removeprefix(f"{root}/"))
                    for package in metadata["packages"]
                    for target in package["targets"]
                }

            inside = cargo_metadata(directory)
            sent = shown(inside, inside["workspace_root"])
            whole = cargo_metadata()
            shipped = {row for row in shown(whole, whole["workspace_root"]) if row[0] != "system-tests"}
            self.assertLessEqual(shipped, sent)

    def test_what_build_scripts_read_is_sent(self):
        sent = set(self.files)
        protos = {str(path.relative_to(ROOT)) for path in (ROOT / "proto").rglob("*.proto")}
        self.assertNotEqual(protos, set())
        self.assertLessEqual(protos, sent)
        for path in self.files:
            if path.endswith("/build.rs"):
                for read in re.findall(r"rerun-if-changed=([^\"]+)", (ROOT / path).read_text(encoding="utf-8")):
                    folder = (ROOT / path).parent.joinpath(read).resolve().relative_to(ROOT)
                    self.assertTrue(any(one.startswith(f"{folder}") for one in sent), f"{path} reads {folder}")

    def test_what_sources_include_is_sent(self):
        sent = set(self.files)
        found = 0
        for path in self.files:
            if not path.endswith(".rs") or path.startswith("tests/"):
                continue
            for included in re.findall(r'include(?:_str|_bytes)?!\(\s*"([^"]+)"', (ROOT / path).read_text(encoding="utf-8")):
                found += 1
                target = (ROOT / path).parent.joinpath(included).resolve().relative_to(ROOT)
                self.assertIn(str(target), sent, f"included by {path}")
        self.assertGreater(found, 0, "the pattern finds nothing any more")


if __name__ == "__main__":
    unittest.main()
