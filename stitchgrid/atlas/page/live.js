/* A page from a server asks the server for new data; pages that are written to files do not have this module. */

const live = {version: "", timer: 0};

/** Ask once; new data replace the old ones, and the view stays the same. */
async function askAgain() {
  try {
    const answer = await fetch("data", {headers: {"If-None-Match": `"${live.version}"`}, cache: "no-store"});
    if (answer.status === 200) {
      const found = await answer.json();
      live.version = (answer.headers.get("ETag") ?? "").replaceAll('"', "");
      data.sweeps = found.sweeps;
      await showSweeps();
    } else if (answer.status !== 304) throw new Error((await answer.text()).trim());
    tellLive(`This page shows new results of the store; last update ${new Date().toLocaleTimeString()}.`);
  } catch (problem) {
    tellLive(`No new results from the store; trying again: ${problem.message || "no answer"}`);
  }
  live.timer = setTimeout(askAgain, 1000 * data.live.seconds);
}

function tellLive(text) {
  $("live-note").textContent = text;
  $("live-note").hidden = false;
}

function followStore() {
  live.version = data.live.version;
  tellLive("This page shows new results of the store while a launch runs.");
  live.timer = setTimeout(askAgain, 1000 * data.live.seconds);
}
