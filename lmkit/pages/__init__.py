"""Self-contained HTML and SVG for every verb: charts, tables, whole pages. Values in, text out."""
