-- The shop's own tables, made by the owner of its database. `invoices` has no key on purpose: a second one would be seen.
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id uuid PRIMARY KEY, customer text NOT NULL, total_minor bigint NOT NULL);
CREATE TABLE shop.invoices (order_id uuid NOT NULL, total_minor bigint NOT NULL);
CREATE TABLE shop.seen_again (event_id uuid NOT NULL);
GRANT USAGE ON SCHEMA shop TO shop;
GRANT SELECT, INSERT ON shop.orders, shop.invoices, shop.seen_again TO shop;
