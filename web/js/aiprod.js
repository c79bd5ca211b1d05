// What the nodes of this pack add to the page: colours of nodes and wires, sizes, two read-only lines
// of text, and a message where nodes are missing. Everything is an ordinary widget, so that both
// renderings of the page show it.

import { app } from "../../../scripts/app.js";

const COLORS = {
  "AIPROD/loaders": "blue",
  "AIPROD/model": "blue",
  "AIPROD/text": "green",
  "AIPROD/guides": "cyan",
  "AIPROD/guidance": "purple",
  "AIPROD/latents": "brown",
  "AIPROD/sampling": "yellow",
  "AIPROD/upscaling": "yellow",
  "AIPROD/decode": "red",
  "AIPROD/planning": "pale_blue",
};

// Wires have the colours that the host gives to its own types of the same meaning.
const WIRES = {
  AIPROD_MODEL: "MODEL",
  AIPROD_TEXT_PARTS: "CLIP",
  AIPROD_TEXT_ENCODER: "CLIP",
  AIPROD_VIDEO_VAE: "VAE",
  AIPROD_AUDIO_VAE: "VAE",
  AIPROD_UPSAMPLER: "MODEL",
  AIPROD_CONDITIONING: "CONDITIONING",
  AIPROD_GUIDES: "CONTROL_NET",
  AIPROD_GUIDER: "GUIDER",
  AIPROD_LATENT: "LATENT",
};

const SIZES = {
  AIPRODEmptyLatent: [320, 0],
  AIPRODEncodePrompt: [420, 300],
  AIPRODEnhancePrompt: [420, 480],
  AIPRODInspectFile: [480, 360],
  AIPRODPlan: [740, 460],
};

// The same rules as aiprod_engine/timing.py, which has the last word when the prompt is queued.
const SIDE_STEP = 32;
const FRAME_STEP = 8;
const SOUND_TOKENS_PER_SECOND = 25;

function roundHalfEven(value) {
  const floor = Math.floor(value);
  const isHalf = value - floor === 0.5;
  return isHalf ? floor + (floor % 2) : Math.round(value);
}

/** The nearest legal values of a size that is off the grid, or nothing. */
function offGrid({ width, height, frames }) {
  for (const [name, side] of Object.entries({ width, height })) {
    if (side % SIDE_STEP) {
      const low = Math.max(Math.floor(side / SIDE_STEP) * SIDE_STEP, SIDE_STEP);
      return `${name}: ${low} or ${low + SIDE_STEP}`;
    }
  }
  if ((frames - 1) % FRAME_STEP) {
    const low = Math.floor((frames - 1) / FRAME_STEP) * FRAME_STEP + 1;
    return `frames: ${low} or ${low + FRAME_STEP}`;
  }
  return null;
}

/** Length, tokens of the transformer, and whether the size is legal, in a few words. */
export function describeClip({ width, height, frames, fps, streams }) {
  const seconds = frames / fps;
  const length = `${seconds.toFixed(2)} s`;
  const wrong = offGrid({ width, height, frames });
  if (wrong) return `${length}, off the grid, ${wrong}`;
  const latentFrames = (frames - 1) / FRAME_STEP + 1;
  const picture = latentFrames * (width / SIDE_STEP) * (height / SIDE_STEP);
  const sound = Math.max(1, roundHalfEven(seconds * SOUND_TOKENS_PER_SECOND));
  const tokens = (streams === "sound" ? 0 : picture) + (streams === "picture" ? 0 : sound);
  return `${length}, ${tokens} tokens, on the grid`;
}

/** Keeps a widget out of saved workflows and out of prompts. */
function unsaved(widget) {
  widget.serialize = false;
  widget.options = { ...widget.options, serialize: false };
  return widget;
}

function isLinked(node, name) {
  return node.inputs?.some((input) => input.widget?.name === name && input.link != null);
}

/** Runs `after` behind whatever function the object has under that name. */
function follow(object, name, after) {
  const before = object[name];
  object[name] = function (...args) {
    const result = before?.apply(this, args);
    after.apply(this, args);
    return result;
  };
}

function addClipLine(node) {
  const names = ["width", "height", "frames", "fps", "streams"];
  const read = (name) => node.widgets.find((widget) => widget.name === name)?.value;
  const line = unsaved(node.addWidget("text", "clip", "", () => refresh(), { read_only: true }));
  const refresh = () => {
    const values = Object.fromEntries(names.map((name) => [name, read(name)]));
    line.value = names.some((name) => isLinked(node, name))
      ? "set by the linked inputs"
      : describeClip(values);
  };
  for (const widget of node.widgets) {
    if (names.includes(widget.name)) follow(widget, "callback", refresh);
  }
  follow(node, "onConnectionsChange", refresh);
  follow(node, "onConfigure", refresh);
  refresh();
}

/** A box for the text that a node sends when it has run (Inspect File, Enhance Prompt, ...). */
function addResultBox(node) {
  const { widget } = app.widgets.STRING(node, "result", ["STRING", { multiline: true }], app);
  unsaved(widget).options.read_only = true;
  if (widget.element) widget.element.readOnly = true;
  follow(node, "onExecuted", (output) => {
    if (output?.text) widget.value = [output.text].flat().join("\n");
  });
}

function dress(node) {
  const color = window.LGraphCanvas?.node_colors?.[COLORS[node.constructor.category]];
  if (color) [node.color, node.bgcolor] = [color.color, color.bgcolor];
  const [width, height] = SIZES[node.comfyClass] ?? [0, 0];
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

/** For every new node: the page forgets these colours when it changes its palette. */
function colourWires() {
  const slots = app.canvas?.default_connection_color_byType ?? {};
  const wires = window.LGraphCanvas?.link_type_colors ?? {};
  for (const [own, host] of Object.entries(WIRES)) {
    slots[own] ||= slots[host];
    wires[own] ||= wires[host];
  }
}

/** The same for the newer rendering, which takes them from the style sheet. */
function addWireStyles() {
  const rules = Object.entries(WIRES).map(
    ([own, host]) => `--color-datatype-${own}: var(--color-datatype-${host}, #aaa);`,
  );
  const sheet = document.createElement("style");
  sheet.textContent = `:root { ${rules.join(" ")} }`;
  document.head.append(sheet);
}

/** Says why nodes are missing: the host lists one more node then, whose description is the reason. */
function reportMissingNodes() {
  const missing = window.LiteGraph?.registered_node_types?.AIPRODMissingNodes?.nodeData;
  if (!missing) return;
  const message = { severity: "error", summary: missing.display_name, detail: missing.description };
  app.extensionManager?.toast?.add(message); // stays until it is closed
}

app.registerExtension({
  name: "aiprod.main",
  setup() {
    addWireStyles();
    reportMissingNodes();
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("AIPROD")) return;
    colourWires();
    if (node.comfyClass === "AIPRODEmptyLatent") addClipLine(node);
    const { nodeData } = node.constructor;
    // of this pack only the nodes that show a text are output nodes with an output of their own
    if (nodeData?.output_node && nodeData.output?.includes("STRING")) addResultBox(node);
    dress(node);
  },
});
