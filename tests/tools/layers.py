#!/usr/bin/env python3
"""Checks who depends on whom, over `cargo metadata` on standard input.

    cargo metadata --format-version 1 --locked | tests/tools/layers.py

What cargo-deny can say (licences, registries, version floors, who may use
sea-orm) is in .deny.toml; here is what it cannot: the direction of the arrows
between our own crates, what the pure crates must not link, and the version of
the SQLite that is compiled in. A new arrow is a commit of its own with a reason.
"""

import json
import pathlib
import re
import sys

# Each of our crates, and those of ours that it may depend on.
ARROWS = {
    "pass-domain": set(),
    "pass-proto": {"pass-domain"},
    "pass-sources": {"pass-domain"},
    "pass-spool": set(),
    "pass-migration": set(),
    # The store owns its schema: it opens a database only at the migration it knows.
    "pass-store": {"pass-domain", "pass-migration"},
    "service-kit": set(),
    "webhook-gateway": {"pass-domain", "pass-proto", "pass-sources", "pass-spool", "service-kit"},
    "pass-state": {"pass-domain", "pass-proto", "pass-store", "pass-migration", "service-kit"},
    "passline": {"pass-domain", "pass-proto", "pass-sources", "webhook-gateway", "pass-state", "service-kit"},
    # Fakes of other people's systems; knows the wire and the domain, no service.
    "test-kit": {"pass-domain", "pass-proto", "pass-sources", "pass-migration"},
    # Runs both services with everything around them.
    "system-tests": {
        "pass-domain", "pass-proto", "pass-sources", "pass-spool", "pass-store",
        "service-kit", "webhook-gateway", "pass-state", "passline", "test-kit",
    },
}

# What tests of a crate may use on top of its own arrows. A crate may also name
# itself, to switch on its feature `testing`.
TEST_ARROWS = {"test-kit"}

# Crates that promise an absence. Tests may use what they like.
IO = {"tokio", "hyper", "hyper-util", "axum", "tonic", "sea-orm", "sqlx", "rustix", "reqwest"}
ABSENCES = {
    "pass-domain": IO | {"serde", "serde_json", "prost", "futures-util", "tracing", "anyhow", "http"},
    "pass-sources": IO | {"prost", "futures-util", "tokio-stream"},
    "pass-proto": {"sea-orm", "sqlx", "axum", "tokio"},
    "pass-spool": {"tonic", "prost", "axum", "sea-orm", "sqlx"},
    "pass-store": {"tonic", "axum", "hyper"},
    "webhook-gateway": {"sea-orm", "sqlx"},
    "service-kit": {"sea-orm", "sqlx"},
}

# Older SQLite loses commits in WAL mode when a checkpoint meets a writer.
SQLITE_VERSION_MIN = (3, 51, 3)


def arrow_faults(package, ours):
    name = package["name"]
    if name not in ARROWS:
        yield f"{name}: has no row in ARROWS of tests/tools/layers.py; add one that says what it may depend on"
        return
    for dependency in package["dependencies"]:
        target, for_tests = dependency["name"], dependency["kind"] == "dev"
        if target in ours:
            allowed = ARROWS[name] | (TEST_ARROWS | {name} if for_tests else set())
            if target not in allowed:
                what = "dev-depends" if for_tests else "depends"
                yield f"{name}: {what} on {target}; allowed: {', '.join(sorted(allowed)) or 'none of ours'}"
        elif not for_tests and target in ABSENCES.get(name, ()):
            yield f"{name}: depends on {target}, which it promises to do without"


def sqlite_faults(packages):
    bundles = [p for p in packages if p["name"] == "libsqlite3-sys"]
    if not bundles:
        yield "libsqlite3-sys: not among the packages, so the version of SQLite is not known"
    for package in bundles:
        header = pathlib.Path(package["manifest_path"]).parent / "sqlite3" / "sqlite3.h"
        found = re.search(r'#define SQLITE_VERSION\s+"(\d+)\.(\d+)\.(\d+)"', header.read_text(encoding="utf-8"))
        version = tuple(map(int, found.groups())) if found else None
        if version is None or version < SQLITE_VERSION_MIN:
            shown = ".".join(map(str, version)) if version else "unknown"
            floor = ".".join(map(str, SQLITE_VERSION_MIN))
            yield f"libsqlite3-sys {package['version']}: bundles SQLite {shown}, at least {floor} is needed"


def main():
    metadata = json.load(sys.stdin)
    members = set(metadata["workspace_members"])
    packages = metadata["packages"]
    own = [p for p in packages if p["id"] in members]
    ours = {p["name"] for p in own}

    faults = [fault for package in own for fault in arrow_faults(package, ours)]
    faults += [f"{name}: has a row in ARROWS but is no member of the workspace" for name in sorted(set(ARROWS) - ours)]
    faults += sqlite_faults(packages)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        return 1
    arrows = sum(d["name"] in ours for p in own for d in p["dependencies"])
    print(f"{len(own)} crates, {arrows} arrows between them, all allowed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
