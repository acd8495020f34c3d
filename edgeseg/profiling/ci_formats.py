"""Findings in the forms that CI systems show: JUnit XML, and github-action-benchmark's JSON."""

import json
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from edgeseg.profiling.budgets import Finding
from edgeseg.profiling.rows import names_of

__all__ = ["benchmark_json", "junit_xml"]


def junit_xml(findings: Sequence[Finding], device: str) -> str:
    """One test case a finding; those that exceed their limit fail, those not judged are skipped."""
    failed = sum(f.exceeded for f in findings)
    skipped = sum(f.state.startswith("not judged") for f in findings)
    suite = ElementTree.Element(
        "testsuite",
        name=f"edgeseg profile on {device}",
        tests=str(len(findings)),
        failures=str(failed),
        skipped=str(skipped),
        errors="0",
    )
    for f in findings:
        case = ElementTree.SubElement(suite, "testcase", classname=f.row, name=f.figure)
        if f.exceeded:
            ElementTree.SubElement(case, "failure", message=f.told, type="BudgetExceeded")
        elif f.state != "ok":
            ElementTree.SubElement(case, "skipped", message=f"{f.state}; {f.told}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def benchmark_json(rows: Sequence[dict[str, Any]]) -> str:
    """``customSmallerIsBetter``: a list of ``name``, ``unit``, ``value``, ``range``, ``extra``."""
    entries: list[dict[str, Any]] = []
    for row, called in zip(rows, names_of(rows), strict=True):
        key = f"{called} ({row['kind']})"
        latency = row["latency_ms"]
        spread = row.get("jitter_ms")
        entry = {"name": f"{key}: latency p50", "unit": "ms", "value": latency["p50"]}
        if spread is not None:
            entry["range"] = f"± {spread:g}"
        entry["extra"] = f"p99 {latency['p99']:g} ms; {row['verdict']}"
        entries.append(entry)
        if row.get("ratio"):
            entries.append(
                {
                    "name": f"{key}: latency over {row['ratio']['reference']}",
                    "unit": "x",
                    "value": row["ratio"]["median"],
                }
            )
        for name in ("macs", "params", "file_bytes"):
            if row[name] is not None:
                unit = "bytes" if name == "file_bytes" else "count"
                entries.append({"name": f"{key}: {name}", "unit": unit, "value": row[name]})
    return json.dumps(entries, indent=1) + "\n"
