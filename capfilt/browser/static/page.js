/* What the page does without asking its server: the token of this start, sliders beside numbers, keys.

   Nothing here writes markup: texts of strangers come escaped from the server. Listeners are on the document, so
   that they serve what htmx brings later. */

"use strict";

(() => {
  const TOKEN = "capfilt-token";
  const memory = new Map();

  /* A browser may forbid storage; then this tab remembers for as long as it shows the page. */
  const kept = {
    get(name) {
      try {
        return localStorage.getItem(name) ?? memory.get(name) ?? "";
      } catch {
        return memory.get(name) ?? "";
      }
    },
    set(name, value) {
      memory.set(name, value);
      try {
        localStorage.setItem(name, value);
      } catch {
        /* It is kept in `memory`. */
      }
    },
  };

  /* -- the token: printed behind the # of the address, which a browser sends to nobody */

  function takeToken() {
    const found = /^#token=([\w-]+)$/.exec(location.hash);
    if (found) {
      kept.set(TOKEN, found[1]);
      history.replaceState(history.state, "", location.pathname + location.search);
    }
    document.documentElement.dataset.writes = kept.get(TOKEN) ? "yes" : "no";
  }

  takeToken();
  addEventListener("hashchange", takeToken);

  document.addEventListener("htmx:config:request", (event) => {
    const request = event.detail.ctx.request;
    if (request.method === "POST") {
      request.headers["X-Capfilt-Token"] = kept.get(TOKEN);
    }
  });

  /* -- what is said where the server does not answer */

  function tell(what, mend) {
    const message = document.createElement("div");
    message.className = "message wrong";
    for (const words of [what, mend]) {
      const line = document.createElement("p");
      line.textContent = words;
      message.append(line);
    }
    document.getElementById("notice")?.replaceChildren(message);
  }

  document.addEventListener("htmx:error", (event) => {
    if (event.detail.ctx && !event.detail.ctx.response) {
      tell("The page's server does not answer.", "Start it again: capfilt browse RUN");
    }
  });

  /* What was wrong is over once something worked; what was done is read until something else is begun. */
  document.addEventListener("htmx:after:swap", (event) => {
    if (event.detail.ctx?.response?.status < 400) {
      document.querySelector("#notice .wrong")?.remove();
    }
  });

  /* -- a slider beside a number: the end of a slider is no rule, and an empty number is none either */

  function numberOf(slider) {
    return document.getElementById(slider.dataset.number);
  }

  function open(slider) {
    return slider.dataset.open === "high" ? slider.max : slider.min;
  }

  function follow(slider) {
    const number = numberOf(slider);
    if (number) {
      slider.value = number.value === "" ? open(slider) : number.value;
      slider.setAttribute("aria-valuetext", number.value === "" ? "any" : number.value);
    }
  }

  document.addEventListener(
    "input",
    (event) => {
      document.querySelector("#notice .done")?.remove();
      const moved = event.target;
      if (moved.matches?.("input[type=range][data-number]")) {
        const number = numberOf(moved);
        number.value = moved.value === open(moved) ? "" : moved.value;
        moved.setAttribute("aria-valuetext", number.value === "" ? "any" : number.value);
      } else if (moved.dataset?.slider) {
        const slider = document.getElementById(moved.dataset.slider);
        if (slider) {
          follow(slider);
        }
      }
    },
    true,
  );

  /* -- keys */

  const MATCHES = { m: "#match", x: "#mismatch", u: "#unsure", z: "#undo" };
  const MOVES = { ArrowRight: "[rel=next]", ArrowLeft: "[rel=prev]" };

  function keysAreOn() {
    const choice = document.getElementById("keys");
    return choice === null || choice.checked;
  }

  document.addEventListener("keydown", (event) => {
    const within = event.target.closest?.("input, select, textarea, [contenteditable]");
    const types = within && within.type !== "checkbox";
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || types || !keysAreOn()) {
      return;
    }
    const selector = MATCHES[event.key.toLowerCase()] ?? MOVES[event.key];
    const found = selector && document.querySelector(`main ${selector}`);
    if (found && !event.repeat) {
      event.preventDefault();
      found.click();
    } else if (event.key === "/") {
      const search = document.getElementById("words");
      if (search) {
        event.preventDefault();
        search.focus();
      }
    }
  });

  /* -- what is set up once the page stands, and again for what htmx brings */

  function setUp() {
    document.querySelectorAll("input[type=range][data-number]").forEach(follow);
  }

  document.addEventListener("DOMContentLoaded", () => {
    setUp();
    const policy = document.querySelector(".policy > details");
    if (policy && matchMedia("(max-width: 60rem)").matches) {
      policy.open = false;
    }
  });
  document.addEventListener("htmx:after:process", setUp);
})();
