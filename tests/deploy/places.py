"""Where things are, and how the tools of this environment are called."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jsonschema

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def tool(name, *arguments, timeout=60, **options):
    """Runs a program of this Python environment and returns what came of it, output included."""
    programs = pathlib.Path(sys.executable).parent
    environment = dict(os.environ, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    return run([programs / name, *arguments], timeout=timeout, env=environment, **options)


def run(command, timeout=60, **options):
    """Runs a program from the repository's root and returns what came of it, output included."""
    options.setdefault("cwd", ROOT)
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False, **options
    )


@functools.cache
def cargo_metadata(directory=ROOT):
    """The workspace as cargo sees it, without its dependencies."""
    done = subprocess.run(
        ["cargo", "metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"],
        cwd=directory, capture_output=True, text=True, timeout=120, check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"cargo metadata failed in {directory}:\n{done.stderr}")
    return json.loads(done.stdout)


def published_schema(name):
    """A schema that check-jsonschema carries: `compose-spec`, `github-workflows`, `dependabot`.

    Only the file is taken; the package is not loaded, so that it needs none of what it depends on.
    """
    package = pathlib.Path(importlib.util.find_spec("check_jsonschema").origin).parent
    return json.loads((package / f"builtin_schemas/vendor/{name}.json").read_text(encoding="utf-8"))


def schema_faults(document, name):
    """What is wrong with a document by a published schema, one line each with the place."""
    schema = published_schema(name)
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [f"{fault.json_path}: {fault.message}" for fault in validator.iter_errors(document)]
