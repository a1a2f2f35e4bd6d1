"""Streamlit pages and Plotly figures; never runs a model."""

WORKSPACE_VARIABLE = "GRASP_WORKSPACE"
"""Environment variable that names the workspace to the server's pages."""
