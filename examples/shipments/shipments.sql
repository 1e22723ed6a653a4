-- The service's own table, made by the owner of its database.
CREATE SCHEMA shipments;
CREATE TABLE shipments.parcels (number text PRIMARY KEY, weight_grams int NOT NULL);
GRANT USAGE ON SCHEMA shipments TO shop;
GRANT SELECT, INSERT ON shipments.parcels TO shop;
