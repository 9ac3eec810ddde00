// Swagger UI with what it shows by default, fed by this server's own description.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // it would send the description to swagger.io
});
