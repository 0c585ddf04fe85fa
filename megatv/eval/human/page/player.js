// One or two videos that play as one: same time, same speed, looped together, with START and STOP on the line.

const DRIFT_SECONDS = 0.06;
const SPEEDS = [1, 0.5, 0.25];
const LEAD_IN_SECONDS = 0.5;

export class Player {
  constructor(root) {
    this.root = root;
    this.find = (selector) => root.querySelector(selector);
    this.videos = [];
    this.speed = 0;
    this.wanted = true;  // playing, as far as the person is concerned
    this.find(".play").onclick = () => this.toggle();
    this.find(".speed").onclick = () => this.slower();
    this.find(".replay").onclick = () => this.replay();
    const line = this.find(".line");
    line.onpointerdown = (event) => { line.setPointerCapture(event.pointerId); this.scrub(event); };
    line.onpointermove = (event) => { if (event.buttons) this.scrub(event); };
    requestAnimationFrame(() => this.tick());
  }

  // urls: one or two. marks: {start, stop} in seconds, or null.
  load(urls, marks, names) {
    this.marks = marks;
    this.wanted = true;
    this.ready = false;
    this.videos = urls.map((url) => {
      const video = document.createElement("video");
      Object.assign(video, { src: url, muted: true, playsInline: true, preload: "auto" });
      video.onerror = () => this.root.dispatchEvent(new CustomEvent("unplayable"));
      return video;
    });
    this.find(".videos").replaceChildren(...this.videos.map((video, i) => {
      const frame = document.createElement("figure");
      frame.className = "frame loading";
      const name = document.createElement("figcaption");
      name.textContent = names[i];
      const badge = document.createElement("span");
      badge.className = "badge";
      frame.append(video, name, badge);
      return frame;
    }));
    this.root.classList.toggle("single", urls.length === 1);
    this.find(".replay").hidden = this.find(".mark").hidden = !marks;
    const loaded = this.videos.map((video) => new Promise((done) => { video.oncanplaythrough = done; }));
    const mine = this.videos;
    Promise.all(loaded).then(() => { if (mine === this.videos) this.begin(); });
  }

  begin() {
    this.ready = true;
    this.lead = this.videos.reduce((a, b) => (b.duration > a.duration ? b : a));
    for (const video of this.videos) video.oncanplaythrough = null;
    this.lead.onended = () => this.seek(0);
    for (const frame of this.root.querySelectorAll(".frame")) frame.classList.remove("loading");
    const { videoWidth, videoHeight } = this.lead;
    this.root.style.setProperty("--shape", `${videoWidth} / ${videoHeight}`);
    if (this.marks) {
      const { start, stop } = this.marks, mark = this.find(".mark"), all = this.lead.duration;
      mark.style.left = `${100 * start / all}%`;
      mark.style.width = `${100 * (Math.min(stop, all) - start) / all}%`;
    }
    this.obey();
  }

  obey() {
    for (const video of this.videos) {
      video.playbackRate = SPEEDS[this.speed];
      if (!this.wanted) video.pause();
      else if (!video.ended) video.play().catch(() => {});  // a browser that forbids it shows the button instead
    }
    this.find(".speed").textContent = ["1\u00d7", "\u00bd\u00d7", "\u00bc\u00d7"][this.speed];
  }

  seek(seconds) {
    if (!this.ready) return;
    for (const video of this.videos) video.currentTime = Math.min(Math.max(0, seconds), video.duration);
    this.obey();
  }

  toggle() { this.wanted = !this.wanted; this.obey(); }
  slower() { this.speed = (this.speed + 1) % SPEEDS.length; this.obey(); }
  replay() {
    this.wanted = true;
    this.seek(this.marks ? this.marks.start - LEAD_IN_SECONDS : 0);
  }
  scrub(event) {
    const box = this.find(".line").getBoundingClientRect();
    if (this.ready) this.seek(this.lead.duration * Math.min(1, Math.max(0, (event.clientX - box.x) / box.width)));
  }

  stop() {
    for (const video of this.videos) { video.pause(); video.removeAttribute("src"); video.load(); }
    this.videos = [];
    this.ready = false;
  }

  tick() {
    if (this.ready) {
      const now = this.lead.currentTime, all = this.lead.duration;
      for (const video of this.videos) {
        const due = Math.min(now, video.duration);
        if (video !== this.lead && !video.seeking && !this.lead.seeking
            && Math.abs(video.currentTime - due) > DRIFT_SECONDS * Math.max(1, 3 * SPEEDS[this.speed])) {
          video.currentTime = due;
          if (this.wanted && due < video.duration) video.play().catch(() => {});
        }
      }
      this.find(".fill").style.width = this.find(".head").style.left = `${100 * now / all}%`;
      this.find(".clock").textContent = `${now.toFixed(1)} / ${all.toFixed(1)} s`;
      this.find(".play").classList.toggle("playing", this.wanted && !this.lead.paused);
      this.badge(now);
    }
    requestAnimationFrame(() => this.tick());
  }

  badge(now) {
    const inside = this.marks && now >= this.marks.start && now < this.marks.stop;
    const after = this.marks && now >= this.marks.stop && now < this.marks.stop + 0.5;
    for (const frame of this.root.querySelectorAll(".frame")) {
      frame.classList.toggle("inside", Boolean(inside));
      frame.classList.toggle("after", Boolean(after));
      frame.querySelector(".badge").textContent = inside ? "START" : after ? "STOP" : "";
    }
  }
}
