"""Reads a page as a program would, and finds what is wrong with it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {'meta', 'img', 'br', 'link', 'input', 'hr'}


class PageReader(HTMLParser):
    """Texts, tables and addresses of a page.

    Attributes:
        problems: elements that are not closed in the order they were opened.
        names: names of all elements.
        ids: of all elements.
        addresses: values of all attributes that fetch or link something.
        text: all text but that of styles.
        tables: by the id of their section, rows of cells.
        bars: label and text of each bar, by section.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.names: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.styles: list[str] = []
        self.text = ''
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.terms: dict[str, list[tuple[str, str]]] = {}
        self.tiles: list[str] = []
        self._open: list[str] = []
        self._section = ''
        self._classes: list[str] = []
        self.feed(page)
        self.close()
        self.problems += [f'{name} is not closed' for name in self._open]

    def handle_starttag(self, name, attributes):
        given = dict(attributes)
        self.names.append(name)
        if 'id' in given:
            self.ids.append(given['id'])
        for key in ('src', 'href', 'xlink:href', 'srcset', 'data', 'action'):
            if key in given:
                self.addresses.append(given[key])
        self.styles.append(given.get('style', ''))
        if name == 'section':
            self._section = given['id']
        if name == 'table':
            self.tables.setdefault(self._section, []).append([])
        if name == 'tr':
            self.tables[self._section][-1].append([])
        if name in ('th', 'td'):
            self.tables[self._section][-1][-1].append('')
        if name == 'dt':
            self.terms.setdefault(self._section, []).append(('', ''))
        if name == 'b':
            self.tiles.append('')
        if name not in VOID:
            self._open.append(name)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        if name not in VOID:
            self._open.pop()

    def handle_endtag(self, name):
        if not self._open or self._open.pop() != name:
            self.problems.append(f'{name} is closed at {self.getpos()}')

    def handle_data(self, data):
        if 'style' in self._open:
            self.styles.append(data)
            return
        self.text += data
        if 'table' in self._open and {'th', 'td'} & set(self._open):
            self.tables[self._section][-1][-1][-1] += data
        elif 'dt' in self._open or 'dd' in self._open:
            term, text = self.terms[self._section].pop()
            pair = (term + data, text) if 'dt' in self._open else (term, text + data)
            self.terms[self._section].append(pair)
        elif 'b' in self._open:
            self.tiles[-1] += data
