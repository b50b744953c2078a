"""The application: routes, what happens on each request, and the page."""
