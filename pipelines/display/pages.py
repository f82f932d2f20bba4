"""Web pages of results, each in one file, in the colours that a reader's browser is set to."""

import html

from pipelines.display.tables import TextTable

STYLE = """:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;background:Canvas;color:CanvasText}
table{border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}
td,th{padding:.25em .8em;text-align:right;white-space:nowrap;vertical-align:top}
td:first-child,th:first-child,.words{text-align:left}
tr:nth-child(even) td{background:rgba(128,128,128,.12)}
th.prose{text-align:left}
td.prose{white-space:pre-wrap;text-align:left;min-width:20em}
svg{max-width:100%;height:auto}svg text{fill:currentColor}
pre{background:rgba(128,128,128,.12);padding:1em;overflow-x:auto}
p.note{color:GrayText}"""


def page(title: str, *parts: str) -> str:
    """A page of parts, which the functions below make."""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
{"".join(part for part in parts if part)}
</html>
"""


def section(title: str, *parts: str) -> str:
    """Parts under a heading; nothing where there is none of them."""
    return f"<h2>{html.escape(title)}</h2>\n{''.join(parts)}\n" if any(parts) else ""


def paragraph(text: str, is_note: bool = False) -> str:
    """Words."""
    return f"<p{' class=note' if is_note else ''}>{html.escape(text)}</p>\n" if text else ""


def table(shown: TextTable, is_prose: bool = False) -> str:
    """A table with its caption; `is_prose`: its cells are texts, which are wrapped."""
    if not shown.rows:
        return ""

    def cells(tag: str, values: list[str]) -> str:
        kinds = ["prose" if is_prose else "words" if n < shown.text_columns else "" for n in range(len(values))]
        return "".join(
            f"<{tag}{f' class={kind}' if kind else ''}>{html.escape(value)}</{tag}>"
            for kind, value in zip(kinds, values, strict=True)
        )

    head = f"<tr>{cells('th', shown.columns)}</tr>" if any(shown.columns) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in shown.rows)
    return f"<table>{head}{body}</table>\n" + "".join(paragraph(line, True) for line in shown.caption.splitlines())


def picture(plot: str) -> str:
    """A plot, as SVG; nothing of none."""
    return "" if not plot else f"<figure>{plot[plot.index('<svg') :]}</figure>\n"


def preformatted(text: str) -> str:
    """A text as it is, such as YAML."""
    return f"<pre>{html.escape(text)}</pre>\n"
