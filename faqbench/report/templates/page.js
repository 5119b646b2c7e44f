// Sorting, filtering and paging of tables, and opening the run a link points to. The page is
// complete without any of it. Only the rows of one page are in the document at a time, so that
// sorting a long table costs the layout of a short one.
(function () {
  "use strict";
  var PAGE = 100, FEW = 7;
  function key(cell) {
    var raw = cell.dataset.sort;
    if (raw === undefined || raw === "") return null;
    var value = Number(raw);
    return Number.isNaN(value) ? raw.toLowerCase() : value;
  }
  function compare(a, b) {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  }
  function element(name, text, parent) {
    var made = document.createElement(name);
    made.textContent = text;
    parent.append(made);
    return made;
  }
  function enhance(table, n) {
    var body = table.tBodies[0], rows = Array.from(body.rows), shown = rows, page = 0;
    var status = null, pager = null, words = [];
    function draw() {
      var first = page * PAGE;
      body.replaceChildren.apply(body, shown.slice(first, first + PAGE));
      if (status) status.textContent = words.length ? shown.length + " of " + rows.length : "";
      if (!pager) return;
      pager.hidden = shown.length <= PAGE;
      pager.children[0].disabled = page === 0;
      pager.children[1].textContent = "Rows " + (first + 1) + " to " +
        Math.min(first + PAGE, shown.length) + " of " + shown.length;
      pager.children[2].disabled = first + PAGE >= shown.length;
    }
    function filter() {
      shown = rows.filter(function (row) {
        if (!words.length) return true;
        if (row.words === undefined) row.words = row.textContent.toLowerCase();
        return words.every(function (word) { return row.words.includes(word); });
      });
      page = 0;
      draw();
    }
    function sort(index, header) {
      var ascending = header.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th[aria-sort]").forEach(function (th) { th.removeAttribute("aria-sort"); });
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      var keyed = rows.map(function (row) {
        row.classList.remove("break");
        return [key(row.cells[index]), row];
      });
      keyed.sort(function (x, y) {
        if (x[0] === null || y[0] === null) return (x[0] === null) - (y[0] === null);
        return ascending ? compare(x[0], y[0]) : compare(y[0], x[0]);
      });
      rows = keyed.map(function (pair) { return pair[1]; });
      filter();
    }
    Array.from(table.tHead.rows[0].cells).forEach(function (th, index) {
      var button = document.createElement("button");
      button.type = "button";
      button.append.apply(button, Array.from(th.childNodes));
      th.append(button);
      button.addEventListener("click", function () { sort(index, th); });
    });
    if (rows.length >= FEW) {
      var label = element("label", "Filter rows", document.body), input = element("input", "", label);
      label.className = "filter";
      input.type = "search";
      input.id = "filter-" + n;
      status = element("span", "", label);
      status.setAttribute("role", "status");
      table.parentElement.before(label);
      input.addEventListener("input", function () {
        words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
        filter();
      });
    }
    if (rows.length <= PAGE) return;
    pager = element("div", "", document.body);
    pager.className = "pager";
    element("button", "Previous", pager).addEventListener("click", function () { page -= 1; draw(); });
    element("span", "", pager).setAttribute("role", "status");
    element("button", "Next", pager).addEventListener("click", function () { page += 1; draw(); });
    table.parentElement.after(pager);
    addEventListener("beforeprint", function () { body.replaceChildren.apply(body, shown); });
    addEventListener("afterprint", draw);
    draw();
  }
  document.querySelectorAll("table.tool").forEach(enhance);
  function reveal() {
    var id = decodeURIComponent(location.hash.slice(1));
    var target = id && document.getElementById(id);
    if (!target) return;
    var inner = target.querySelector(":scope > details.fold") || target;
    for (var d = inner.closest("details"); d; d = d.parentElement.closest("details")) d.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  addEventListener("beforeprint", function () {
    document.querySelectorAll("details.fold").forEach(function (d) { d.open = true; });
    document.querySelectorAll("figure details").forEach(function (d) { d.open = false; });
  });
  reveal();
})();
