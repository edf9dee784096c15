"""A page of Markdown as one HTML file: pictures in it, light and dark, without a script."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Mapping

from markdown_it import MarkdownIt

STYLE = """
:root { color-scheme: light dark; --text: #1c2530; --quiet: #5b6875; --line: #d9dfe6; --back: #fff; --band: #f5f7f9;
  --link: #0550ae }
@media (prefers-color-scheme: dark) {
  :root { --text: #d7dde4; --quiet: #93a0ad; --line: #333c46; --back: #14181d; --band: #1b2027; --link: #79b8ff }
  img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen } }
* { box-sizing: border-box }
body { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 5rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--back) }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere }
h2 { font-size: 1.3rem; margin: 2.8rem 0 0.8rem; padding-bottom: 0.25rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1.02rem; margin: 1.8rem 0 0.6rem }
a { color: var(--link); text-decoration: none } a:hover { text-decoration: underline }
nav { columns: 13rem; font-size: 0.92rem; padding: 0.9rem 1.1rem; background: var(--band); border-radius: 8px }
nav a { display: block; padding: 0.1rem 0 }
.wide { overflow-x: auto; margin: 0.8rem 0 }
table { width: max-content; border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums }
th, td { max-width: 27rem; padding: 0.25rem 0.8rem; border-bottom: 1px solid var(--line); vertical-align: top; unicode-bidi: isolate }
th { color: var(--quiet); font-weight: 600; border-bottom-width: 2px }
td[style*=right] { white-space: nowrap } tbody tr:hover { background: var(--band) }
th:first-child, td:first-child { padding-left: 0.2rem }
pre { background: var(--band); padding: 0.8rem 1rem; border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate }
code { font: 0.86em/1.45 ui-monospace, monospace }
img { display: block; max-width: 100%; margin: 1rem 0 } li { margin: 0.3rem 0 }
@media print { nav { display: none } h2 { break-after: avoid } img, tr { break-inside: avoid } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(text: str, pictures: Mapping[str, bytes], title: str) -> str:
    """Return the HTML of a Markdown text, in which all HTML is text. pictures: PNG images by the names that it has."""
    md = MarkdownIt("commonmark", {"html": False}).enable("table")
    md.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    md.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = md.parse(text)
    links: list[str] = []
    for token, inside in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and token.tag == "h2" and inside:
            name = f"s{len(links) + 1}"
            token.attrSet("id", name)
            links.append(f'<a href="#{name}">{md.renderInline(inside.content)}</a>')
        for child in token.children or ():
            if child.type == "image":
                image = b64encode(pictures[str(child.attrs["src"])]).decode()
                child.attrSet("src", f"data:image/png;base64,{image}")
    shown = md.renderer.render(tokens, md.options, {})
    head, end, rest = shown.partition("</h1>\n")
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{head}{end}"
            f"<nav>{''.join(links)}</nav>\n{rest}</body>\n</html>\n")
