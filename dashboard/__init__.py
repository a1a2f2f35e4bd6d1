"""Streamlit pages and Plotly figures; never runs a model."""

WORKSPACE_VARIABLE = "GRASP_WORKSPACE"
"""Environment variable that tells the pages which workspace to open."""
