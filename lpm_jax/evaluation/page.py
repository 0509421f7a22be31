"""Self-contained HTML pages, written whole or not at all."""

import os

import jinja2

from lpm_jax import media


def write_page(path: str | os.PathLike, template: str, **content: object):
  """Fills one of `templates/` with `content` and writes it."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("lpm_jax.evaluation"), autoescape=True, trim_blocks=True
  )
  write_whole(path, environment.get_template(template).render(content))


def write_whole(path: str | os.PathLike, text: str):
  """Writes a text file whole or not at all."""
  with media.written_whole(path) as temporary:
    temporary.write_text(text, encoding="utf-8")
