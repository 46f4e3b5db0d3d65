// Filters of the gallery and the factory calculator. Without scripts the page shows their defaults.
(function () {
  "use strict";
  var gallery = document.getElementById("gallery-cards");
  var form = document.getElementById("gallery-controls");
  if (gallery && form) {
    var cards = Array.prototype.slice.call(gallery.querySelectorAll(".card"));
    var shown = document.getElementById("gallery-count"), more = document.getElementById("gallery-more");
    var limit = 12;
    var apply = function () {
      var wanted = new FormData(form), view = wanted.get("view"), count = 0;
      gallery.dataset.view = view;
      gallery.classList.toggle("no-overlay", !wanted.get("overlay"));
      gallery.classList.toggle("no-patches", !wanted.get("patches"));
      cards.forEach(function (card) {
        var verdict = wanted.get("verdict"), found = card.querySelector(".text ." + view);
        var fits = found !== null;
        ["split", "product", "gold"].forEach(function (name) {
          fits = fits && (!wanted.get(name) || wanted.get(name) === card.dataset[name]);
        });
        fits = fits && (!verdict || found.dataset.verdict === verdict || found.dataset.change === verdict);
        count += fits ? 1 : 0;
        card.hidden = !fits || count > limit;
      });
      shown.textContent = count + " of " + cards.length + " pictures" + (count > limit ? ", " + limit + " shown" : "");
      more.hidden = count <= limit;
    };
    more.addEventListener("click", function () { limit = cards.length; apply(); });
    form.addEventListener("input", apply);
    apply();
  }
  var factory = document.getElementById("factory-controls");
  if (factory) {
    var number = function (value) {
      if (!isFinite(value)) { return "–"; }
      return value.toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
    };
    factory.addEventListener("input", function () {
      var prior = factory.elements.prior.valueAsNumber / 100, parts = factory.elements.parts.valueAsNumber;
      if (!(prior >= 0 && prior <= 1 && parts > 0)) { return; }
      document.querySelectorAll("#factory-table [data-miss]").forEach(function (row) {
        var defective = parts * prior, missed = defective * row.dataset.miss / 100;
        var overkilled = (parts - defective) * row.dataset.overkill / 100, caught = defective - missed;
        row.querySelector(".missed").textContent = number(missed);
        row.querySelector(".overkilled").textContent = number(overkilled);
        row.querySelector(".ppv").textContent = number(100 * caught / (caught + overkilled));
      });
      document.querySelectorAll(".parts").forEach(function (item) { item.textContent = parts.toLocaleString("en-US"); });
      document.querySelectorAll(".prior").forEach(function (item) { item.textContent = String(+(prior * 100).toFixed(4)); });
      document.querySelectorAll(".defective").forEach(function (item) { item.textContent = number(parts * prior); });
    });
  }
})();
