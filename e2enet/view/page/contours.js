// Contours of labels and the crosshair on the planes, drawn along the edges of voxels: exact, and thin at every zoom.
"use strict";

const DASHES = [[], [7, 3], [2, 2.5]];

/**
 * How a plane of the planes' canvas shows voxels: `at(i, j)` is the pixel (CSS) of the corner of voxel (i, j), counted
 * along the axes `across` and `up` of the volume. `axis` is the third one, `slice` the index shown.
 *
 * Source: leftTopMM and fovMM of NiiVue's tiles, in the space without rotation in which it draws slices.
 */
function tilesOf(nv, dims) {
  const ratio = nv.uiData.dpr || 1;
  return nv.screenSlices.filter(tile => tile.axCorSag <= 2).map(tile => {
    const [across, up, axis] = [[0, 1, 2], [0, 2, 1], [1, 2, 0]][tile.axCorSag];
    const millimetres = fraction => nv.frac2mm(fraction, 0, false);
    const low = millimetres([0, 0, 0]), high = millimetres([1, 1, 1]);
    const [left, top, width, height] = tile.leftTopWidthHeight.map(value => value / ratio);
    const scale = [width / tile.fovMM[0], height / tile.fovMM[1]];
    const step = [(high[across] - low[across]) / dims[across], (high[up] - low[up]) / dims[up]];
    const slice = Math.min(Math.floor(nv.scene.crosshairPos[axis] * dims[axis]), dims[axis] - 1);
    const at = (i, j) => [
      left + (low[across] + i * step[0] - tile.leftTopMM[0]) * scale[0],
      top + height - (low[up] + j * step[1] - tile.leftTopMM[1]) * scale[1],
    ];
    return { across, up, axis, slice, at, box: [left, top, width, height] };
  });
}

/** The label at voxel (i, j) of a plane; -1 outside. */
function reader(volume, tile) {
  const { dims, voxels } = volume;
  const steps = [1, dims[0], dims[0] * dims[1]];
  const start = tile.slice * steps[tile.axis];
  const [a, b] = [tile.across, tile.up];
  return (i, j) => i < 0 || j < 0 || i >= dims[a] || j >= dims[b] ? -1 : voxels[start + i * steps[a] + j * steps[b]];
}

/**
 * Draw the outlines of all labels with a style in one plane.
 *
 * `styleOf(value)` is {colour, dash, width, rim}, or null for a value without an outline.
 */
function drawContours(context, tile, volume, styleOf) {
  const read = reader(volume, tile);
  const [columns, rows] = [volume.dims[tile.across], volume.dims[tile.up]];
  const paths = new Map();
  const edge = (value, i0, j0, i1, j1) => {
    if (!paths.has(value)) paths.set(value, new Path2D());
    paths.get(value).moveTo(...tile.at(i0, j0));
    paths.get(value).lineTo(...tile.at(i1, j1));
  };
  const styles = new Map();
  const isDrawn = value => {
    if (value <= 0) return false;
    if (!styles.has(value)) styles.set(value, styleOf(value));
    return styles.get(value) !== null;
  };
  // Runs of equal edges become one line, so that dashes go on along it.
  for (let j = 0; j <= rows; j++) {
    for (const side of [0, -1]) {
      let start = 0, current = 0;
      for (let i = 0; i <= columns; i++) {
        const value = i < columns ? read(i, j + side) : 0, other = i < columns ? read(i, j - 1 - side) : 0;
        const own = value !== other && isDrawn(value) ? value : 0;
        if (own !== current) {
          if (current) edge(current, start, j, i, j);
          start = i;
          current = own;
        }
      }
    }
  }
  for (let i = 0; i <= columns; i++) {
    for (const side of [0, -1]) {
      let start = 0, current = 0;
      for (let j = 0; j <= rows; j++) {
        const value = j < rows ? read(i + side, j) : 0, other = j < rows ? read(i - 1 - side, j) : 0;
        const own = value !== other && isDrawn(value) ? value : 0;
        if (own !== current) {
          if (current) edge(current, i, start, i, j);
          start = j;
          current = own;
        }
      }
    }
  }
  context.save();
  context.beginPath();
  context.rect(...tile.box);
  context.clip();
  context.lineCap = "square";
  for (const [value, path] of paths) {
    const style = styles.get(value);
    if (style.rim) {
      context.setLineDash([]);
      context.lineWidth = style.width + 1.6;
      context.strokeStyle = "rgba(0, 0, 0, 0.65)";
      context.stroke(path);
    }
    context.setLineDash(DASHES[style.dash]);
    context.lineWidth = style.width;
    context.strokeStyle = style.colour;
    context.stroke(path);
  }
  context.restore();
}

/** Draw thin lines through the crosshair, with a gap where they cross. */
function drawCrosshair(context, tile, fraction, dims) {
  const [x, y] = tile.at(fraction[tile.across] * dims[tile.across], fraction[tile.up] * dims[tile.up]);
  const [left, top, width, height] = tile.box, gap = 9;
  context.save();
  context.beginPath();
  context.rect(...tile.box);
  context.clip();
  context.beginPath();
  for (const [x0, y0, x1, y1] of [[left, y, x - gap, y], [x + gap, y, left + width, y], [x, top, x, y - gap], [x, y + gap, x, top + height]]) {
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  }
  context.lineWidth = 1;
  context.strokeStyle = "rgba(150, 205, 240, 0.7)";
  context.stroke();
  context.restore();
}
