"""Runs every check on the first NVIDIA card and prints one line for each.

Exit code 0 when all that could run has passed, or when there is no driver; 1 when something failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from arbiter_sidecar.adapters import nvml, nvml_driver
from arbiter_sidecar.types import MIB
from tests.gpu import checks, server_checks
from tests.gpu.bench import Bench


def _run(check: Callable[[Bench], str], bench: Bench) -> bool:
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        result = check(bench)
    except (AssertionError, OSError) as error:
        print(f"FAILED  {name}: {error}", flush=True)
        return False
    print(f"ok      {name}: {result}", flush=True)
    return True


def _describe(bench: Bench) -> None:
    driver = nvml_driver.Driver()
    facts = bench.probe.facts
    print(
        f"{facts.name} ({facts.device_id}), driver {driver.version()}, {facts.total_bytes // MIB} MiB, "
        f"attribution {facts.attribution.name}",
        flush=True,
    )
    driver.close()


def _check(bench: Bench) -> bool:
    _describe(bench)
    wanted = [*checks.DEVICE_CHECKS, *(checks.PROCESS_CHECKS if bench.attributes else ())]
    passed = [_run(check, bench) for check in wanted]
    left_out = len(server_checks.SERVER_CHECKS)
    if not bench.attributes:
        print(
            f"not run: {len(checks.PROCESS_CHECKS) + left_out} checks of single processes, because the driver does not "
            "tell them apart here; run in the host's process namespace",
            flush=True,
        )
    elif not all(passed):
        print(f"not run: {left_out} checks with a server, which rest on what failed", flush=True)
    else:
        passed += [_run(check, bench) for check in server_checks.SERVER_CHECKS]
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed", flush=True)
    return all(passed)


def main() -> int:
    """The exit code."""
    try:
        probes, notes = nvml.find(nvml.NvmlConfig())
    except FileNotFoundError as error:
        print(f"not run: {error}")
        return 0
    except OSError as error:
        print(f"FAILED  {error}")
        return 1
    for note in notes:
        print(note)
    if not probes:
        print("not run: the NVIDIA driver knows no card")
        return 0
    try:
        return 0 if _check(Bench(probes[0])) else 1
    finally:
        for probe in probes:
            probe.close()


if __name__ == "__main__":
    sys.exit(main())
