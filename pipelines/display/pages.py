"""Web pages of results, each in one file."""

import html

from pipelines.display.tables import TextTable

STYLE = """body{font-family:sans-serif;max-width:70em;margin:2em auto}td,th{padding:.2em .8em;text-align:left}
tr:nth-child(even){background:#eee}svg{max-width:100%;height:auto}"""


def page(title: str, introduction: str, table: TextTable, plots: list[str], recipe: str) -> str:
    """A page with a table, plots (SVG) and the run (YAML) that came out best."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    pictures = "".join(plot[plot.index("<svg") :] for plot in plots)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>{html.escape(introduction)}</p>
<table><tr>{head}</tr>{body}</table>
{pictures}
<h2>The best trial's run</h2><pre>{html.escape(recipe)}</pre>
</html>
"""
