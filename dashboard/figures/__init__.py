"""Charts: pure functions that take arrays and tables and return Plotly figures."""
