"""Streamlit pages and Plotly figures; never runs a model."""
