import type { Failure, Json, Source } from "../api";
import { Failed } from "./failed";

/** The server that this page came from; a cookie that it set says who asks. */
export class HttpSource implements Source {
  readonly live = true;

  async json<T>(path: string): Promise<T> {
    return (await (await request(path)).json()) as T;
  }

  async bytes(path: string): Promise<ArrayBuffer> {
    return (await request(path)).arrayBuffer();
  }

  async post<T>(path: string, body: Json): Promise<T> {
    const headers = { "Content-Type": "application/json" };
    return (await (await request(path, { method: "POST", headers, body: JSON.stringify(body) })).json()) as T;
  }
}

async function request(path: string, options?: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(`api/${path}`, { ...options, credentials: "same-origin" });
  } catch {
    throw new Failed(
      "the studio's server does not answer",
      "start `gradprism studio` again and open the address that it prints",
      0,
    );
  }
  if (response.ok) return response;
  if (response.status === 403) {
    throw new Failed("this page may not read from the server", "open the address that `gradprism studio` printed", 403);
  }
  const failure = (await response.json().catch(() => null)) as Failure | null;
  const { message, hint } = failure?.error ?? {
    message: `the server answered ${response.status} to ${path}`,
    hint: "load the page again",
  };
  throw new Failed(message, hint, response.status);
}
