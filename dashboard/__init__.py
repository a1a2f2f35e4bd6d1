"""Streamlit pages and Plotly figures; never runs a model."""

WORKSPACE_VARIABLE = "GRASP_WORKSPACE"
"""Environment variable that tells the pages which workspace to open."""

READ_ONLY_VARIABLE = "GRASP_DASHBOARD_READ_ONLY"
"""Environment variable that is set where no page may write."""
