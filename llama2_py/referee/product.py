"""A matrix times a vector, of which a referee gets to know one element after another.

    product = Product()
    product[17] = 0.25        # element 17 is computed
    17 in product             # True
    len(product)              # 1

A log's header can name 2**24 elements, and messages then open three of them: only the pages are there in which an
element is known.
"""
from array import array
from collections.abc import Iterator

PAGE = 2**12  # elements of a page


class Page:
    """PAGE elements, and which of them are known."""

    def __init__(self) -> None:
        self.values = array("f", bytes(4 * PAGE))
        self.known = bytearray(PAGE)


class Product:
    """Elements, binary32, by their numbers."""

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}
        self.count = 0

    def __len__(self) -> int:
        """How many elements are known."""
        return self.count

    def __contains__(self, number: int) -> bool:
        page = self.pages.get(number // PAGE)
        return page is not None and page.known[number % PAGE] == 1

    def __getitem__(self, number: int) -> float:
        return self.pages[number // PAGE].values[number % PAGE]

    def __setitem__(self, number: int, value: float) -> None:
        page = self.pages.setdefault(number // PAGE, Page())
        page.values[number % PAGE] = value
        self.count += not page.known[number % PAGE]
        page.known[number % PAGE] = 1

    def __iter__(self) -> Iterator[int]:
        """The numbers of the elements that are known, in order."""
        for first in sorted(self.pages):
            known = self.pages[first].known
            yield from (first * PAGE + i for i in range(PAGE) if known[i])
