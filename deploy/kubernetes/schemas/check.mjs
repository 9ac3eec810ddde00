// Reads objects of the operators' kinds as a JSON list from stdin; prints what their schemas object to, and exits with 1.
import { readFileSync } from "node:fs";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";

const kinds = { ScaledObject, ServiceMonitor };
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new kinds[object.kind](object).validate();
    console.log(`${object.kind}/${object.metadata.name} fits its schema`);
  } catch (error) {
    console.error(`${object.kind}/${object.metadata.name}: ${error.message}`);
    process.exitCode = 1;
  }
}
