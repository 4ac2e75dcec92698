"""The result of a rehearsal for people and machines, without anything of the board's nvs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from mpota.formats.partition_table import PartitionTable
from mpota.rehearse.rehearsal import Rehearsal, Tried
from mpota.rehearse.stage import NETWORK, Passage, Setup
from mpota.units import KiB

COLUMNS = ("Step", "Ends with", ">Ops", ">Flash", ">CPU", ">Reads", ">Heap", ">Tried", ">Fell")

_LEAST_SECRET = 5  # characters; shorter words of nvs are no secrets
_WORD = re.compile(rf"[!-~]{{{_LEAST_SECRET},}}")


def rows(result: Rehearsal) -> Iterator[tuple[str, ...]]:
    """The table: a row for each step, and one for the connections that broke."""
    for step in result.steps:
        tried = [one for one in result.tried if one.scenario == step.name]
        yield (
            step.name,
            step.ends,
            f"{step.operations:,}",
            f"{step.flash_ms / 1000:.1f} s",
            f"{step.cpu_s:.1f} s" if step.cpu_s else "",
            f"{step.reads:,}" if step.reads is not None else "",
            f"{step.least_free // KiB} KiB" if step.least_free is not None else "",
            *_counts(tried, len(step.findings)),
        )
    broken = [one for one in result.tried if one.scenario == NETWORK]
    if broken:
        yield (NETWORK, "the line broke", "", "", "", "", "", *_counts(broken, 0))


def _counts(tried: list[Tried], found: int) -> tuple[str, str]:
    fell = sum(bool(one.findings) for one in tried) + found
    return str(len(tried) or ""), str(fell) if tried or found else ""


def verdict(result: Rehearsal) -> str:
    """The result in one line."""
    cuts = sum(one.scenario != NETWORK for one in result.tried)
    breaks = len(result.tried) - cuts
    what = f"{_many(cuts, 'power cut')}, {_many(breaks, 'broken connection')}"
    if result.is_interrupted:
        what += f", {result.planned - len(result.tried):,} were not tried"
    twice = [one.twice for one in result.tried if one.twice is not None]
    more = f"; at most {max(twice):,} bytes came twice" if twice else ""
    stopped = [step for step in result.steps if step.findings]
    if stopped:
        return f"{stopped[0].name} fell: {stopped[0].findings[0]}"
    fell = sum(bool(one.findings) for one in result.tried)
    if fell:
        return f"{fell:,} of {len(result.tried):,} fell ({what}){more}"
    return f"nothing fell: {what}{more}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def to_json(plan: Setup, result: Rehearsal) -> dict[str, Any]:
    subject = plan.subject
    return {
        "ok": not result.findings and not result.is_interrupted,
        "verdict": verdict(result),
        "release": {"name": plan.offer.name, "version": plan.offer.version},
        "board": {"name": subject.name, "chip": subject.chip_name, "flash": len(subject.content)},
        "by": plan.way,
        "heap": plan.heap_size,
        "confined": plan.is_confined,
        "seconds": round(result.seconds, 1),
        "interrupted": result.is_interrupted,
        "planned": result.planned,
        "notes": [*subject.notes, *result.notes],
        "steps": [_step_json(step) for step in result.steps],
        "tried": [
            {"id": one.id, "boots": one.boots, "twice": one.twice, "findings": list(one.findings)}
            for one in result.tried
        ],
        "findings": [{"id": name, "text": text} for name, text in result.findings],
    }


def _step_json(step: Passage) -> dict[str, Any]:
    return {
        "name": step.name,
        "ends": step.ends,
        "operations": step.operations,
        "flash_ms": round(step.flash_ms, 1),
        "cpu_s": round(step.cpu_s, 3),
        "reads": step.reads,
        "least_free": step.least_free,
        "received": step.received,
        "findings": list(step.findings),
    }


def to_junit(plan: Setup, result: Rehearsal) -> bytes:
    """A test suite as CI servers read it (JUnit's XML): a case for each step, cut and break."""
    cases = [(step.name, step.findings) for step in result.steps]
    cases += [(one.id, one.findings) for one in result.tried]
    suite = ElementTree.Element(
        "testsuite",
        name=f"mpota rehearse {_plain(plan.offer.name)}",
        tests=str(len(cases)),
        failures=str(sum(bool(findings) for _, findings in cases)),
        errors=str(int(result.is_interrupted)),
        time=f"{result.seconds:.1f}",
    )
    for name, findings in cases:
        case = ElementTree.SubElement(
            suite, "testcase", name=name, classname=f"rehearse.{plan.way}", time="0"
        )
        for text in findings:
            ElementTree.SubElement(case, "failure", message=_plain(text))
    if result.is_interrupted:
        case = ElementTree.SubElement(suite, "testcase", name="all", classname="rehearse")
        ElementTree.SubElement(case, "error", message="it was interrupted")
    text = ElementTree.tostring(suite, encoding="unicode")
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + text.encode()


def _plain(text: str) -> str:
    """``text`` without the characters that XML cannot have."""
    return "".join(c if c.isprintable() else "?" for c in text)


class Redactor:
    """Keeps words that stand in the board's nvs (Wi-Fi passwords, say) out of what is told.

    Words that the release or mpota itself says, in ``own``, are none of these.
    """

    def __init__(self, plan: Setup) -> None:
        content = plan.subject.content
        self._nvs = b""
        offset = plan.subject.table_offset
        table = PartitionTable.from_bytes(content[offset : offset + 0xC00])
        for part in table:
            if (part.type_name, part.subtype_name) == ("data", "nvs"):
                self._nvs += content[part.offset : part.end]
        self._own = {*_WORD.findall(f"{plan.offer.name} {plan.offer.version} {plan.subject.name}")}

    def clean(self, text: str) -> str:
        return _WORD.sub(self._judge, text)

    def _judge(self, match: re.Match[str]) -> str:
        word = match[0].strip("'\"(),;:.!")
        if len(word) < _LEAST_SECRET or word in self._own or word.encode() not in self._nvs:
            return match[0]
        return match[0].replace(word, "***")
