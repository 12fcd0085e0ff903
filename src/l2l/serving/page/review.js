// The queue of labels: least sure first, for the keyboard.
"use strict";

function reviewPage() {
  const canvas = $("mask"), picture = $("picture"), stage = $("stage"), brush = $("brush");
  const colour = COLOURS[0];
  const drafts = new Map(); // number -> strokes that are not decided on yet
  let pairs = [], order = [], at = 0, item = null, base = null;
  const decidedHere = []; // numbers, in the order in which they were decided
  const frame = $("frame");
  let painting = false, erasing = false, size = 0, stroke = null, busy = false, turn = 0, zoom = 1, held = null;

  const strokes = () => {
    if (!drafts.has(item.number)) drafts.set(item.number, []);
    return drafts.get(item.number);
  };

  function progress() {
    const count = (verdict) => pairs.filter((one) => one.decided === verdict).length;
    const rejected = count("reject"), decided = rejected + count("accept");
    $("progress").textContent = `${decided} of ${pairs.length}, ${rejected} rejected`;
    $("bar").max = pairs.length;
    $("bar").value = decided;
  }

  /** What the filter shows is fixed when it is chosen, so that one can go back to what was just decided. */
  function choose() {
    const wanted = $("filter").value;
    order = pairs.filter((one) => wanted === "all" || (one.decided ?? "open") === wanted).map((one) => one.number);
    at = 0;
    show();
  }

  function nobody(text) {
    item = null;
    stage.hidden = true;
    $("empty").hidden = false;
    $("empty").textContent = text;
    for (const id of ["accept", "reject", "repaint", "toggle"]) $(id).disabled = true;
  }

  async function show() {
    const mine = (turn += 1);
    paintingIs(false);
    zoomIs(1);
    say("");
    $("previous").disabled = at <= 0;
    $("next").disabled = at >= order.length;
    for (const id of ["nothing", "decided"]) $(id).hidden = true;
    for (const id of ["sentence", "score", "pair"]) $(id).textContent = "";
    if (at >= order.length) {
      $("pair").parentElement.hidden = true;
      return nobody($("filter").value === "open" ? "Nothing is left to decide." : "No further pair.");
    }
    const pair = pairs[order[at]];
    $("pair").parentElement.hidden = false;
    $("sentence").textContent = pair.sentence;
    $("score").textContent = pair.score.toFixed(2);
    $("pair").textContent = pair.id;
    item = null;
    stage.classList.add("waiting"); // what stands there belongs to another sentence
    try {
      const [told, blob] = await Promise.all([
        ask(`/review/item/${pair.number}`).then((reply) => reply.json()),
        ask(`/review/picture/${pair.number}`).then((reply) => reply.blob()),
      ]);
      const drawn = document.createElement("canvas");
      const address = URL.createObjectURL(blob);
      await Promise.all([drawMask(drawn, told.mask, colour), loaded(new Image(), address)]);
      if (mine !== turn) return URL.revokeObjectURL(address);
      if (picture.src) URL.revokeObjectURL(picture.src);
      await loaded(picture, address);
      if (mine !== turn) return;
      item = told;
      base = drawn;
      pair.decided = told.decided;
    } catch (error) {
      if (mine === turn) nobody("This pair cannot be shown."), say(error.message);
      return;
    }
    picture.alt = `Picture of: ${item.sentence}`;
    $("nothing").hidden = !item.nothing;
    $("decided").hidden = !item.decided;
    $("decided").textContent = item.decided === "reject" ? "rejected" : "accepted";
    $("decided").className = `tag ${item.decided}`;
    size ||= Math.max(4, Math.round(Math.sqrt(item.size[0] * item.size[1]) / 15));
    canvas.width = item.size[1];
    canvas.height = item.size[0];
    for (const id of ["accept", "reject", "repaint", "toggle"]) $(id).disabled = false;
    $("empty").hidden = true;
    stage.hidden = false;
    canvas.hidden = false;
    refit();
    redraw();
    sizeIs(size);
    stage.classList.remove("waiting");
  }

  function refit() {
    if (item) fit(item.size[1], item.size[0], 0.6, zoom);
  }

  /** What is under the pointer, or in the middle, stays where it is. */
  function zoomIs(value, x, y) {
    const before = stage.getBoundingClientRect(), box = frame.getBoundingClientRect();
    x ??= box.left + frame.clientWidth / 2;
    y ??= box.top + frame.clientHeight / 2;
    const across = (x - before.left) / before.width, down = (y - before.top) / before.height;
    zoom = value < 1.05 ? 1 : Math.min(value, 16);
    frame.classList.toggle("zoomed", zoom > 1);
    frame.tabIndex = zoom > 1 ? 0 : -1; // the arrows up and down move it then
    refit();
    if (size) sizeIs(size);
    if (zoom === 1) return;
    const after = stage.getBoundingClientRect();
    frame.scrollLeft += after.left + across * after.width - x;
    frame.scrollTop += after.top + down * after.height - y;
  }

  function redraw() {
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(base, 0, 0);
    for (const one of strokes()) trace(context, one);
    $("undo").disabled = !strokes().length;
    $("nothing").hidden = !item.nothing || strokes().length > 0;
    $("toggle").setAttribute("aria-pressed", String(!canvas.hidden));
  }

  function trace(context, one) {
    context.globalCompositeOperation = one.erase ? "destination-out" : "source-over";
    context.strokeStyle = colour;
    context.lineWidth = one.size;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...one.points[0]);
    for (const point of one.points) context.lineTo(...point);
    context.stroke();
  }

  /** The mask as a PNG in base64, white what is meant; half a pixel or more counts as one. */
  function exported() {
    const out = document.createElement("canvas");
    out.width = canvas.width;
    out.height = canvas.height;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    for (let pixel = 0; pixel < pixels.data.length; pixel += 4) {
      const value = pixels.data[pixel + 3] > 127 ? 255 : 0;
      pixels.data.set([value, value, value, 255], pixel);
    }
    out.getContext("2d").putImageData(pixels, 0, 0);
    return out.toDataURL("image/png").split(",")[1];
  }

  async function decide(verdict) {
    if (!item || busy || stroke) return;
    busy = true;
    const mine = item, body = { id: mine.id, verdict };
    if (strokes().length) body.mask = exported();
    try {
      await ask(`/review/item/${mine.number}`, { method: "POST", body: JSON.stringify(body),
        headers: { "Content-Type": "application/json" } });
      pairs[mine.number].decided = verdict;
      decidedHere.push(mine.number);
      drafts.delete(mine.number);
      progress();
      if (item === mine) go(1);
    } catch (error) {
      say(error.message);
    } finally {
      busy = false;
    }
  }

  /** Takes back what was decided of the pair that is shown, or else the last decision made here, and shows that pair. */
  async function undecide() {
    if (busy || stroke) return;
    while (decidedHere.length && !pairs[decidedHere.at(-1)].decided) decidedHere.pop();
    const shown = item && pairs[item.number].decided ? item.number : decidedHere.at(-1);
    if (shown === undefined) return say("Nothing was decided here yet. P goes back to a pair, or choose what to show.");
    busy = true;
    try {
      await ask(`/review/item/${shown}`, { method: "POST", body: JSON.stringify({ id: pairs[shown].id, verdict: "open" }),
        headers: { "Content-Type": "application/json" } });
      pairs[shown].decided = null;
      progress();
      const found = order.indexOf(shown);
      if (found < 0) return say(`Not decided any more: ${pairs[shown].sentence}`);
      at = found;
      await show();
      say("Not decided any more; the mask is that of l2l label.");
    } catch (error) {
      say(error.message);
    } finally {
      busy = false;
    }
  }

  function go(by) {
    const to = at + by;
    if (to < 0 || to > order.length) return;
    at = to;
    show();
  }

  function paintingIs(on) {
    painting = on && Boolean(item);
    stroke = null;
    stage.classList.toggle("painting", painting);
    $("tools").hidden = !painting;
    brush.hidden = true;
    $("repaint").setAttribute("aria-pressed", String(painting));
    if (painting) hide(false);
  }

  function erasingIs(on) {
    erasing = on;
    $("erase").setAttribute("aria-pressed", String(on));
    brush.classList.toggle("erasing", on);
  }

  function sizeIs(value) {
    size = Math.min(Math.max(Math.round(value), 1), 1000);
    $("size").textContent = `${size} px`;
    const shown = item ? (size / item.size[1]) * stage.clientWidth : size;
    brush.style.width = brush.style.height = `${shown}px`;
  }

  function hide(on) {
    canvas.hidden = on;
    $("toggle").setAttribute("aria-pressed", String(!on));
  }

  function undo() {
    if (!painting || stroke) return;
    strokes().pop();
    redraw();
  }

  const larger = () => painting && sizeIs(Math.max(size + 1, size * 1.25));
  const smaller = () => painting && sizeIs(Math.min(size - 1, size / 1.25));
  const actions = {
    a: () => decide("accept"), r: () => decide("reject"), u: undecide, e: () => item && paintingIs(!painting),
    n: () => go(1), arrowright: () => go(1), p: () => go(-1), arrowleft: () => go(-1),
    0: () => item && hide(!canvas.hidden), x: () => painting && erasingIs(!erasing), z: undo, "]": larger, "[": smaller,
    "+": () => item && zoomIs(zoom * 1.5), "=": () => actions["+"](), "-": () => item && zoomIs(zoom / 1.5),
  };
  const buttons = { accept: "a", reject: "r", undecide: "u", closer: "+", farther: "-", repaint: "e", next: "n", previous: "p", toggle: "0", erase: "x", undo: "z",
    larger: "]", smaller: "[" };
  for (const [id, key] of Object.entries(buttons)) $(id).onclick = () => actions[key]();
  document.onkeydown = (event) => {
    const undoing = event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey;
    if (((event.ctrlKey || event.metaKey) && !undoing) || event.altKey || $("token-dialog").open) return;
    if (["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName)) return;
    const action = Object.hasOwn(actions, event.key.toLowerCase()) && actions[event.key.toLowerCase()];
    if (!action || (event.repeat && "areu".includes(event.key.toLowerCase()))) return;
    event.preventDefault();
    action();
  };
  stage.oncontextmenu = (event) => painting && event.preventDefault();
  stage.onpointerdown = (event) => {
    if (!painting && zoom > 1 && !event.button && event.pointerType === "mouse") {
      held = [event.clientX + frame.scrollLeft, event.clientY + frame.scrollTop];
      stage.setPointerCapture(event.pointerId);
    }
    if (!painting || stroke || ![0, 2].includes(event.button)) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    stroke = { erase: erasing || event.button === 2, size, points: [place(event, canvas.width, canvas.height)] };
    strokes().push(stroke);
    redraw();
  };
  stage.onpointermove = (event) => {
    if (held) frame.scrollTo(held[0] - event.clientX, held[1] - event.clientY);
    const [x, y] = place(event, 100, 100);
    brush.hidden = !painting;
    brush.style.left = `${x}%`;
    brush.style.top = `${y}%`;
    if (!stroke) return;
    stroke.points.push(place(event, canvas.width, canvas.height));
    // Only the last piece: redrawing everything at each move is slow on large pictures.
    trace(canvas.getContext("2d"), { ...stroke, points: stroke.points.slice(-2) });
  };
  stage.onpointerup = stage.onpointercancel = () => { stroke = held = null; };
  stage.addEventListener("wheel", (event) => {
    if (!item || !event.ctrlKey) return; // without, it scrolls
    event.preventDefault();
    zoomIs(zoom * 1.2 ** -Math.sign(event.deltaY), event.clientX, event.clientY);
  }, { passive: false });
  stage.onpointerleave = () => { brush.hidden = true; };
  $("filter").onchange = () => { choose(); $("filter").blur(); };
  window.onresize = () => { refit(); sizeIs(size); };
  window.onbeforeunload = (event) => {
    if ([...drafts.values()].some((one) => one.length)) event.preventDefault();
  };

  ask("/review/queue").then((reply) => reply.json()).then((told) => {
    pairs = told.pairs;
    progress();
    choose();
  }).catch((error) => { nobody("There is no queue."); say(error.message); });
}

reviewPage();
