// What a person sees: one card per consultation, its latest vitals, then the messages. All text
// goes through textContent, because everything shown was written by somebody else.

const LABELS = {
  heart_rate: "Heart rate",
  spo2: "SpO2",
  temperature: "Temperature",
  systolic: "Systolic",
  diastolic: "Diastolic",
};
const UNITS = {
  heart_rate: "/min",
  spo2: "%",
  temperature: "°C",
  systolic: "mmHg",
  diastolic: "mmHg",
};
const MESSAGES_SHOWN = 30;

const cards = new Map();

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function card(room) {
  let found = cards.get(room.roomId);
  if (!found) {
    found = {
      title: element("h2"),
      vitals: element("dl"),
      messages: element("ol"),
    };
    cards.set(room.roomId, found);
    document
      .getElementById("rooms")
      .append(element("section", {}, found.title, found.vitals, found.messages));
  }
  found.title.textContent = room.name;
  return found;
}

// Matrix forbids fractions in events: a value is text, an integer, or an integer with the power
// of ten it stands for.
function number(value) {
  if (value === null || typeof value !== "object") return String(value);
  const exponent = value.exponent ?? 0;
  if (Number.isInteger(value.value) && exponent < 0) {
    return (value.value * 10 ** exponent).toFixed(-exponent);
  }
  if (Number.isInteger(value.value)) return String(value.value * 10 ** exponent);
  return String(value.value ?? JSON.stringify(value));
}

// The kinds may stand at the top of the content or inside one of its objects.
function* vitals(content) {
  for (const [key, value] of Object.entries(content)) {
    if (key in LABELS) yield [key, number(value)];
    else if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      yield* vitals(value);
    }
  }
}

function addLine(room, { id, className, text, details }) {
  const { messages } = card(room);
  messages.prepend(
    element("li", { id, className }, text, element("small", { textContent: details })),
  );
  while (messages.childElementCount > MESSAGES_SHOWN) messages.lastElementChild.remove();
}

// From the room's current state, so that an old event decrypted late does not pass for the latest.
function showVitals(room) {
  const latest = room.currentState.getStateEvents("com.fajma.vitals");
  card(room).vitals.replaceChildren(
    ...latest
      .flatMap((event) => [...vitals(event.getContent())])
      .map(([kind, value]) =>
        element(
          "div",
          {},
          element("dt", { textContent: LABELS[kind] }),
          element("dd", { textContent: `${value} ${UNITS[kind]}` }),
        ),
      ),
  );
}

export function showUser(userId) {
  document.getElementById("who").textContent = `Signed in as ${userId}`;
}

export function showEvent(room, event) {
  const content = event.getContent();
  document.getElementById(event.getId())?.remove(); // it had failed, and is readable now
  showVitals(room);
  if (event.getType() !== "m.room.message") return;
  const time = new Date(event.getTs()).toISOString().slice(11, 19);
  addLine(room, {
    id: event.getId(),
    className: "com.fajma.alarm" in content ? "alarm" : "message",
    text: String(content.body ?? ""),
    details: `${time} UTC · ${event.getSender()}${event.isEncrypted() ? " · encrypted" : ""}`,
  });
}

export function showFailure(room, { event_id: id, sender, reason }) {
  addLine(room, {
    id,
    className: "failure",
    text: `Unable to decrypt (${reason})`,
    details: sender,
  });
}
