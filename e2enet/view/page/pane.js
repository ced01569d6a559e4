// One prediction on its scan: three planes with fill and contours on one canvas, its labels in 3D on another.
"use strict";

const HEADER = 352;  // bytes of a NIfTI header, as e2enet writes it
const MAX_3D = 224;  // voxels per axis of the 3D view: more are not seen, and take memory
const VIEWS = { all: "4 views", axial: "axial", coronal: "coronal", sagittal: "sagittal", "3d": "3D" };
const PLANES = {
  all: [[0, [0, 0, 0.5, 0.5]], [1, [0.5, 0, 0.5, 0.5]], [2, [0, 0.5, 0.5, 0.5]]],
  axial: [[0, [0, 0, 1, 1]]],
  coronal: [[1, [0, 0, 1, 1]]],
  sagittal: [[2, [0, 0, 1, 1]]],
  "3d": [],
};
const OPTIONS = {
  logLevel: "silent",
  isRadiologicalConvention: true,
  sagittalNoseLeft: true,
  backColor: [0.027, 0.035, 0.051, 1],
  crosshairWidth: 0,  // drawn with the contours: NiiVue's is a voxel wide
  fontColor: [0.72, 0.78, 0.86, 1],
  dragAndDropEnabled: false,
  viewModeHotKey: "",
  clipPlaneHotKey: "",
  cycleClipPlaneHotKey: "",
  isAntiAlias: true,
  loadingText: "",
};

/** Unpack base64 text of a gzip file. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), sign => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** Read a NIfTI file that e2enet wrote: little-endian, uint8, int16 or float32, x fastest. */
async function readVolume(text) {
  const buffer = await unpack(text);
  const header = new DataView(buffer, 0, HEADER);
  const dims = [42, 44, 46].map(place => header.getInt16(place, true));
  const type = { 2: Uint8Array, 4: Int16Array, 16: Float32Array }[header.getInt16(70, true)];
  return {
    buffer, dims, voxels: new type(buffer, HEADER),
    slope: header.getFloat32(112, true), intercept: header.getFloat32(116, true),
  };
}

/** A NIfTI file of colours on the grid of a volume, of every `stride`-th voxel along each axis. */
function colourFile(volume, strides = [1, 1, 1]) {
  const dims = volume.dims.map((size, axis) => Math.ceil(size / strides[axis]));
  const buffer = new ArrayBuffer(HEADER + 4 * dims[0] * dims[1] * dims[2]);
  new Uint8Array(buffer).set(new Uint8Array(volume.buffer, 0, HEADER));
  const header = new DataView(buffer);
  header.setInt16(70, 2304, true);  // RGBA
  header.setInt16(72, 32, true);
  header.setFloat32(112, 1, true);
  header.setFloat32(116, 0, true);
  dims.forEach((size, axis) => {
    header.setInt16(42 + 2 * axis, size, true);
    header.setFloat32(80 + 4 * axis, strides[axis] * header.getFloat32(80 + 4 * axis, true), true);
    for (const row of [280, 296, 312]) {
      header.setFloat32(row + 4 * axis, strides[axis] * header.getFloat32(row + 4 * axis, true), true);
    }
  });
  return { buffer, dims, strides };
}

class Pane {
  /** Build the canvases in an element; `onMove(voxel)` is told where the crosshair stands. */
  constructor(element, onMove) {
    this.element = element;
    element.className = "pane";
    element.innerHTML = `<div class="pane-title"></div><div class="stage"><div class="planes"><canvas></canvas></div>
      <canvas class="lines"></canvas><div class="solid"><canvas></canvas></div></div>`;
    [this.planesCanvas, this.lines, this.solidCanvas] = element.querySelectorAll("canvas");
    this.title = element.querySelector(".pane-title");
    this.planes = new niivue.Niivue({
      ...OPTIONS,
      isNearestInterpolation: true,
      mouseEventConfig: {
        leftButton: { primary: niivue.DRAG_MODE.crosshair, withShift: niivue.DRAG_MODE.pan },
        rightButton: niivue.DRAG_MODE.windowing,
        centerButton: niivue.DRAG_MODE.pan,
      },
    });
    this.solid = new niivue.Niivue({ ...OPTIONS, sliceType: niivue.SLICE_TYPE.RENDER, isOrientationTextVisible: false });
    this.planes.onLocationChange = place => this.scan && onMove(place.vox.map(Math.round));
    this.outlines = [];
    this.hasCrosshair = true;
  }

  async start() {
    await this.planes.attachToCanvas(this.planesCanvas);
    await this.solid.attachToCanvas(this.solidCanvas);
    await this.solid.setVolumeRenderIllumination(0.55);
    const draw = this.planes.drawScene.bind(this.planes);
    // NiiVue draws at every change, and the contours must follow each of them.
    this.planes.drawScene = () => { draw(); this.drawLines(); };
    this.setView("all");
  }

  /** Show another scan; `grid` is a label volume, which has the same grid. */
  async setScan(scan, window, grid) {
    this.scan = scan;
    const fill = colourFile(grid), solidFill = colourFile(grid, grid.dims.map(size => Math.ceil(size / MAX_3D)));
    const image = await niivue.NVImage.new(scan.buffer, "scan.nii", "gray", 1, null, ...window);
    const overlay = await niivue.NVImage.new(fill.buffer, "fill.nii", "gray", 1);
    const solid = await niivue.NVImage.new(solidFill.buffer, "labels.nii", "gray", 1);
    if (this.scan !== scan) return;  // the next one was asked for meanwhile
    [this.fill, this.solidFill] = [fill, solidFill];
    this.planes.volumes = [image, overlay];
    this.planes.setVolume(image, 0);
    this.solid.volumes = [solid];
    this.solid.setVolume(solid, 0);
    this.planes.setPan2Dxyzmm([0, 0, 0, 1]);
  }

  /** Fill the planes and the 3D view by a label volume; `colours` is value -> 0xAABBGGRR, 0 for nothing. */
  setFill(labels, colours, opacity, solidLabels, solidColours) {
    const [overlay] = this.planes.overlays;
    paint(this.fill, overlay.img, labels, colours);
    overlay.opacity = opacity;
    this.planes.refreshLayers(overlay, 1);
    this.smoothScan();
    const [solid] = this.solid.volumes;
    paint(this.solidFill, solid.img, solidLabels, solidColours);
    this.solid.updateGLVolume();
    this.planes.drawScene();
  }

  setOpacity(opacity) {
    const [overlay] = this.planes.overlays;
    overlay.opacity = opacity;
    this.planes.refreshLayers(overlay, 1);
    this.smoothScan();
    this.planes.drawScene();
  }

  setWindow([low, high]) {
    const [scan] = this.planes.volumes;
    [scan.cal_min, scan.cal_max] = [low, high];
    this.planes.updateGLVolume();
    this.smoothScan();
    this.planes.drawScene();
  }

  setScanVisible(isVisible) {
    this.planes.volumes[0].opacity = isVisible ? 1 : 0;
    this.planes.updateGLVolume();
    this.smoothScan();
    this.planes.drawScene();
  }

  /** The scan is interpolated, labels are not. */
  smoothScan() {
    this.planes.updateInterpolation(1);
    this.planes.updateInterpolation(0, true);
  }

  /** `outlines` are [label volume, styleOf]; see drawContours. */
  setOutlines(outlines) {
    this.outlines = outlines;
    this.planes.drawScene();
  }

  setView(view) {
    this.element.dataset.view = view;
    this.planes.resizeListener();
    this.solid.resizeListener();
    if (view !== "3d") this.planes.setCustomLayout(PLANES[view].map(([sliceType, position]) => ({ sliceType, position })));
  }

  moveTo(voxel) {
    this.planes.scene.crosshairPos = voxel.map((index, axis) => (index + 0.5) / this.scan.dims[axis]);
    this.planes.createOnLocationChange();
    this.planes.drawScene();
  }

  setCrosshair(isVisible) {
    this.hasCrosshair = isVisible;
    this.drawLines();
  }

  /** Enlarge the planes around the crosshair. */
  zoom(factor) {
    const pan = this.planes.scene.pan2Dxyzmm, place = this.planes.frac2mm(this.planes.scene.crosshairPos);
    const zoom = Math.min(Math.max(pan[3] * factor, 0.5), 20), change = pan[3] - zoom;
    this.planes.setPan2Dxyzmm([0, 1, 2].map(axis => pan[axis] + change * place[axis]).concat(zoom));
  }

  drawLines() {
    const { clientWidth: width, clientHeight: height } = this.lines, ratio = window.devicePixelRatio || 1;
    this.lines.width = width * ratio;
    this.lines.height = height * ratio;
    if (!this.scan || this.element.dataset.view === "3d") return;
    const context = this.lines.getContext("2d");
    context.scale(ratio, ratio);
    for (const tile of tilesOf(this.planes, this.scan.dims)) {
      for (const [volume, styleOf] of this.outlines) drawContours(context, tile, volume, styleOf);
      if (this.hasCrosshair) drawCrosshair(context, tile, this.planes.scene.crosshairPos, this.scan.dims);
    }
  }
}

/** Colour every voxel of a file of colours by the label volume; `target` is the file's bytes as NiiVue holds them. */
function paint(file, target, labels, colours) {
  const pixels = new Uint32Array(target.buffer, target.byteOffset, file.dims[0] * file.dims[1] * file.dims[2]);
  if (!labels) { pixels.fill(0); return; }
  const { voxels, dims } = labels, [sx, sy, sz] = file.strides;
  if (sx * sy * sz === 1) {
    for (let index = 0; index < pixels.length; index++) pixels[index] = colours[voxels[index]];
    return;
  }
  let index = 0;
  for (let z = 0; z < dims[2]; z += sz) {
    for (let y = 0; y < dims[1]; y += sy) {
      const row = dims[0] * (y + dims[1] * z);
      for (let x = 0; x < dims[0]; x += sx) pixels[index++] = colours[voxels[row + x]];
    }
  }
}
