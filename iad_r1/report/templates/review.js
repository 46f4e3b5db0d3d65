() => {
  const seen = (id) => document.getElementById(id);
  const reading = () => document.body.dataset.iadMode === "reading";
  const typing = (element) => element.matches("textarea, input:not([type=radio])");
  const keys = { a: "accept", e: "edit", r: "reject", m: "mask", arrowleft: "back", arrowright: "next" };
  const firsts = { editing: "#iad-editing textarea", rejecting: "#iad-rejecting input, #iad-rejecting textarea",
                   naming: "#iad-name input, #iad-name textarea" };
  let busy = 0;  // since when an answer is waited for: no key counts until then
  window.iadReview = {
    mode(name) {
      document.body.dataset.iadMode = name;
      seen("iad-notice").classList.add("iad-old");
      const first = name in firsts && document.querySelector(firsts[name]);
      if (first) first.focus(); else if (document.activeElement) document.activeElement.blur();
    },
    idle: () => Date.now() - busy > 10000,
    mask() { seen("iad-item").classList.toggle("iad-unmasked"); },
    done() {
      busy = 0;
      const notice = seen("iad-notice").classList;
      const refused = document.querySelector("#iad-notice .iad-notice");
      if (!document.querySelector("#iad-item article, #iad-item .iad-empty")) iadReview.mode("naming");
      else if (!refused || !document.body.dataset.iadMode) iadReview.mode("reading");
      notice.remove("iad-old");
    },
  };
  document.addEventListener("click", (event) => {
    if (event.target.closest("#iad-accept, #iad-back, #iad-next")) busy = Date.now();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && seen("iad-who")) {
      if (document.querySelector("#iad-item article, #iad-item .iad-empty")) iadReview.mode("reading");
    } else if (event.key === "Enter" && event.ctrlKey && document.body.dataset.iadMode === "editing") {
      event.preventDefault();
      seen("iad-take").click();
    } else if (!event.ctrlKey && !event.metaKey && !event.altKey && reading() && !typing(event.target)) {
      const key = keys[event.key.toLowerCase()];
      if (!key) return;
      event.preventDefault();
      if (key === "mask") return iadReview.mask();
      if (event.repeat || !iadReview.idle()) return;
      seen("iad-" + key).click();
    }
  });
}
