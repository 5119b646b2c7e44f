// Sorting and filtering of the main table, and opening the run a link points to. The page is
// complete without any of it.
(function () {
  "use strict";
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
  function sortBy(table, index, header) {
    var body = table.tBodies[0];
    var ascending = header.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th[aria-sort]").forEach(function (th) { th.removeAttribute("aria-sort"); });
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    var rows = Array.from(body.rows).map(function (row) { return [key(row.cells[index]), row]; });
    rows.sort(function (x, y) {
      if (x[0] === null || y[0] === null) return (x[0] === null) - (y[0] === null);
      return ascending ? compare(x[0], y[0]) : compare(y[0], x[0]);
    });
    rows.forEach(function (pair) { pair[1].classList.remove("break"); body.append(pair[1]); });
  }
  document.querySelectorAll("table.tool").forEach(function (table, n) {
    Array.from(table.tHead.rows[0].cells).forEach(function (th, index) {
      var button = document.createElement("button");
      button.type = "button";
      button.append.apply(button, Array.from(th.childNodes));
      th.append(button);
      button.addEventListener("click", function () { sortBy(table, index, th); });
    });
    if (table.tBodies[0].rows.length < 7) return;
    var label = document.createElement("label");
    label.className = "filter";
    label.textContent = "Filter rows";
    var input = document.createElement("input");
    input.type = "search";
    input.id = "filter-" + n;
    label.append(input);
    var count = document.createElement("span");
    count.setAttribute("role", "status");
    label.append(count);
    table.parentElement.before(label);
    input.addEventListener("input", function () {
      var words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      var shown = 0;
      Array.from(table.tBodies[0].rows).forEach(function (row) {
        var text = row.textContent.toLowerCase();
        row.hidden = !words.every(function (w) { return text.includes(w); });
        shown += row.hidden ? 0 : 1;
      });
      count.textContent = words.length ? shown + " of " + table.tBodies[0].rows.length : "";
    });
  });
  function reveal() {
    var id = decodeURIComponent(location.hash.slice(1));
    var target = id && document.getElementById(id);
    var details = target && target.closest("details");
    if (details) { details.open = true; target.scrollIntoView(); }
  }
  addEventListener("hashchange", reveal);
  addEventListener("beforeprint", function () {
    document.querySelectorAll("figure details").forEach(function (d) { d.open = false; });
  });
  reveal();
})();
