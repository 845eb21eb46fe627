"""The figures of a ``--benchmark-json`` file as Markdown tables.

``python benchmarks/report.py FIGURES.json`` prints them; with a second argument they are written
into that document, between the two markers of their section. A section without figures stays.
"""

import json
import sys
from pathlib import Path

LEAST_SHARE = 0.85  # of the echo's rows a second
MOST_MULTIPLE = 1.25  # of the CPU of the echo and the bare run


def main():
    figures = json.loads(Path(sys.argv[1]).read_bytes())
    sections = {
        "figures": (_http(figures), _codecs(figures), _start(figures)),
        "echo figures": (_echo(figures),),
    }
    document = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    for name, tables in sections.items():
        if not any(tables):
            continue
        text = "\n\n".join(filter(None, [_machine(figures), *tables]))
        if document is None:
            print(text, end="\n\n")
        else:
            _write(document, name, text)


def _write(document, name, text):
    begin, end = f"<!-- {name}: written by benchmarks/report.py -->", f"<!-- end of {name} -->"
    before, _, rest = document.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"{document} has not the lines {begin!r} and {end!r}")
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _machine(figures):
    info = figures["machine_info"]
    cpu = info["cpu"]
    return " · ".join(
        (
            f"{figures['datetime'][:16].replace('T', ' ')} UTC",
            f"{cpu.get('brand_raw', 'unknown CPU')}, {cpu.get('count', '?')} CPUs",
            f"Linux {info['release']}",
            f"Python {info['python_version']}",
            f"{info['data']} models and inputs",
        )
    )


def _http(figures):
    rows = []
    for extra in _extras(figures, "limit"):
        engine, bare = extra["engine"], extra["bare"]
        ratio = engine["cpu_s_per_million_rows"] / bare["cpu_s_per_million_rows"]
        rows.append(
            [
                extra["workload"],
                extra["what"],
                _number(extra["run_cpu_s_per_million_rows"]),
                _number(bare["cpu_s_per_million_rows"]),
                _number(engine["cpu_s_per_million_rows"]),
                f"**{ratio:.2f}**" + (" (over)" if ratio > extra["limit"] else ""),
                f"{extra['limit']:.2f}",
                *(
                    f"{_number(bare[k])} → {_number(engine[k])}"
                    for k in ("requests_per_s", "p50_ms", "p99_ms")
                ),
            ]
        )
    measured = "`session.run`|bare loop|engine|engine / bare|limit"
    return _table(f"workload|request|{measured}|requests/s|p50 ms|p99 ms", rows)


def _echo(figures):
    rows = []
    for extra in _extras(figures, "share_of_echo"):
        echo, engine, least = extra["echo"], extra["engine"], extra.get("least")
        key = "cpu_s_per_million_rows"
        rows.append(
            [
                f"{extra['transport']} c{extra['clients']}",
                f"{extra['rows']:,}",
                _number(echo["rows_per_s"] / 1e3),
                _number(engine["rows_per_s"] / 1e3),
                _limited(extra["share_of_echo"], extra["share_of_echo"] < LEAST_SHARE),
                f"{_number(echo[key])} + {_number(extra['run_us'] / extra['rows'])}",
                _number(engine[key]),
                _limited(engine["multiple"], engine["multiple"] > MOST_MULTIPLE),
                f"{least['multiple']:.2f}" if least else "",
                f"{echo['p50_us']:,.0f} + {extra['run_us']:,.0f}",
                f"{engine['p50_us']:,.0f}",
            ]
        )
    shares = "echo|engine|engine / echo"
    return _table(
        f"load|rows|krows/s: {shares}|CPU: echo + run|engine|multiple|least Python|p50 µs: "
        "echo + run|engine",
        rows,
    )


def _limited(value, is_missed):
    return f"**{value:.2f}**" + (" (missed)" if is_missed else "")


def _codecs(figures):
    rows = [
        [
            extra["codec"],
            f"{extra['rows']:,}",
            f"{extra['bytes']:,}",
            _number(extra["rows"] / extra["rows_per_s"] * 1e6),
            _number(extra["rows_per_s"]),
            _number(extra["mb_per_s"]),
        ]
        for extra in _extras(figures, "rows_per_s")
    ]
    return _table("codec|rows|bytes|µs|rows/s|MB/s", rows)


def _start(figures):
    rows = [
        [
            f"{extra['cpu_s_to_ready']:.2f} s",
            f"{extra['wall_s_to_ready']:.2f} s",
            f"{extra['resident_mib']:.0f} MiB",
        ]
        for extra in _extras(figures, "cpu_s_to_ready")
    ]
    return _table("CPU to ready|time to ready|resident when ready", rows)


def _extras(figures, key):
    found = (benchmark["extra_info"] for benchmark in figures["benchmarks"])
    return [extra for extra in found if key in extra]


def _table(heads, rows):
    if not rows:
        return ""
    names = heads.split("|")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value):
    """Three significant digits, thousands apart."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


if __name__ == "__main__":
    main()
