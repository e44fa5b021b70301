// Sorts a table by the column whose title is clicked, or chosen by Enter.
for (const table of document.querySelectorAll('table')) {
  table.querySelectorAll('thead th').forEach((title, column) => {
    const value = (row) => {
      const text = row.cells[column].textContent;
      const number = parseFloat(text);
      return Number.isNaN(number) ? text : number;
    };
    const sort = () => {
      const falling = title.getAttribute('aria-sort') !== 'descending';
      for (const other of table.querySelectorAll('th')) other.removeAttribute('aria-sort');
      title.setAttribute('aria-sort', falling ? 'descending' : 'ascending');
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        // Text behind numbers, whichever way.
        if (typeof x !== typeof y) return typeof x === 'number' ? -1 : 1;
        return (x < y ? -1 : x > y ? 1 : 0) * (falling ? -1 : 1);
      });
      table.tBodies[0].append(...rows);
    };
    title.tabIndex = 0;
    title.style.cursor = 'pointer';
    title.addEventListener('click', sort);
    title.addEventListener('keydown', (event) => event.key === 'Enter' && sort());
  });
}
